"""The ways of saving that docs/how-to/checkpoints.md shows: its blocks run, with Hugging Face where it is there."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import aafit

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "checkpoints.md").read_text(encoding="utf-8")


def block(heading: str) -> str:
    """The block of code in a section of the page."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"^```py\n(.*?)^```", section, re.S | re.M)
    return str(code)


def test_a_hugging_face_model_and_its_activations_are_saved_beside_each_other(tmp_path, monkeypatch) -> None:
    transformers = pytest.importorskip("transformers", reason="benchmarks/networks/requirements.txt")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=50, **sizes)).eval()
    batch = {"input_ids": torch.randint(50, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    net, report = aafit.replace_activations(model, {"GELU": aafit.LEAF.like("Tanh")}, sample=batch)
    assert len(report.rows) == 2
    monkeypatch.chdir(tmp_path)
    names = {"model": model, "net": net, "aafit": aafit, "AutoModel": transformers.AutoModel}
    exec(block("Hugging Face models"), names)
    with torch.no_grad():
        again, before, base = (each(**batch).last_hidden_state for each in (names["net"], net, model))
    assert names["net"] is not net
    assert torch.equal(again, before)
    assert not torch.equal(again, base)


def test_a_lightning_module_trains_the_activations_only_and_loads_its_checkpoint(tmp_path) -> None:
    # The class of lightning is a torch.nn.Module whose checkpoint holds its state_dict.
    names = {"lightning": SimpleNamespace(LightningModule=nn.Module), "aafit": aafit, "torch": torch}
    exec(block("Lightning"), names)
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 3)), torch.randn(20, 4)
    adapted = names["Adapted"](base, x)
    optimizer = adapted.configure_optimizers()
    adapted.net(x).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(base.state_dict()[name], adapted.net.state_dict()[name]) for name in base.state_dict())
    assert len([parameter for group in optimizer.param_groups for parameter in group["params"]]) == 4
    torch.save({"state_dict": adapted.state_dict()}, tmp_path / "last.ckpt")
    again = names["Adapted"](base, x)
    assert not torch.equal(again.net(x), adapted.net(x))
    again.load_state_dict(torch.load(tmp_path / "last.ckpt")["state_dict"])
    assert torch.equal(again.net(x), adapted.net(x))
