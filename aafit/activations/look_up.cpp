// Straight lines between learnt values, looked up in the processor's vector registers.
//
// at = (u - left) * scale; k is its segment, part = at - k, y = weight[k] + part * rises[k].
//
// The operations and their order are those of linear_spline.py, and so are the bits. The loop that a compiler makes
// of that program loads weight[k] and rises[k] element by element, which takes most of its time.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if !defined(__AVX512F__) && !defined(__AVX2__)

// Elements in a register: this processor has none to look up in.
extern "C" int register_width() { return 0; }

#else

#include <immintrin.h>

namespace {

constexpr int most = 64;  // points in a table

struct BFloat16 {
  uint16_t bits;
};

// For either instruction set the same few operations on all elements of a register. Of a number and NaN, min and max
// are the second argument. Stored as bfloat16, a number is rounded to the nearest, to the even one of two.

#if defined(__AVX512F__)

constexpr int width = 16;
using Floats = __m512;
using Places = __m512i;

inline Floats every(float x) { return _mm512_set1_ps(x); }
inline Floats load(const float* x) { return _mm512_loadu_ps(x); }
inline Floats load(const BFloat16* x) {
  const Places bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
inline void store(float* x, Floats values) { _mm512_storeu_ps(x, values); }
inline void store(int32_t* x, Places places) { _mm512_storeu_si512(x, places); }
inline void store(BFloat16* x, Floats values) {
  const Places bits = _mm512_castps_si512(values);
  const Places odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  Places rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q), bits);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
inline Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Places truncated(Floats x) { return _mm512_cvttps_epi32(x); }
inline Floats floats(Places k) { return _mm512_cvtepi32_ps(k); }

inline Floats look_up(const float* table, int points, Places k) {
  Floats found = _mm512_permutex2var_ps(load(table), k, load(table + 16));
  if (points > 32) {
    const Floats upper = _mm512_permutex2var_ps(load(table + 32), k, load(table + 48));
    found = _mm512_mask_mov_ps(found, _mm512_cmpgt_epi32_mask(k, _mm512_set1_epi32(31)), upper);
  }
  return found;
}

inline Floats zero_at_ends(Floats x, Floats at, Floats segments) {
  const __mmask16 flat =
      _mm512_cmp_ps_mask(at, every(0), _CMP_LE_OQ) | _mm512_cmp_ps_mask(at, segments, _CMP_GE_OQ);
  return _mm512_mask_mov_ps(x, flat, every(0));
}

#else

constexpr int width = 8;
using Floats = __m256;
using Places = __m256i;

inline Floats every(float x) { return _mm256_set1_ps(x); }
inline Floats load(const float* x) { return _mm256_loadu_ps(x); }
inline Floats load(const BFloat16* x) {
  const Places bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}
inline void store(float* x, Floats values) { _mm256_storeu_ps(x, values); }
inline void store(int32_t* x, Places places) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), places); }
inline void store(BFloat16* x, Floats values) {
  const Places bits = _mm256_castps_si256(values);
  const Places odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  Places rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  rounded = _mm256_blendv_epi8(rounded, bits, _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q)));
  rounded = _mm256_srli_epi32(rounded, 16);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(x),
                   _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1)));
}
inline Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Places truncated(Floats x) { return _mm256_cvttps_epi32(x); }
inline Floats floats(Places k) { return _mm256_cvtepi32_ps(k); }

inline Floats look_up(const float* table, int points, Places k) {
  Floats found = _mm256_permutevar8x32_ps(load(table), k);
  for (int first = 8; first < points; first += 8) {
    const Floats above = _mm256_castsi256_ps(_mm256_cmpgt_epi32(k, _mm256_set1_epi32(first - 1)));
    found = _mm256_blendv_ps(found, _mm256_permutevar8x32_ps(load(table + first), k), above);
  }
  return found;
}

inline Floats zero_at_ends(Floats x, Floats at, Floats segments) {
  const Floats flat = _mm256_or_ps(_mm256_cmp_ps(at, every(0), _CMP_LE_OQ), _mm256_cmp_ps(at, segments, _CMP_GE_OQ));
  return _mm256_andnot_ps(flat, x);
}

#endif

constexpr int64_t chunk = 2048;  // elements in hand at a time

struct Line {
  float left, scale;
  int points;
  bool extended;
};

// What one set learnt, padded so that whole registers can be read.
struct Table {
  alignas(64) float weight[most] = {};
  alignas(64) float rises[most] = {};

  Table(const float* its_weight, const float* its_rises, int points) {
    std::memcpy(weight, its_weight, points * sizeof(float));
    std::memcpy(rises, its_rises, (points - 1) * sizeof(float));
  }
};

// Over the inputs in one segment: the sums of grad and of grad * part.
struct Sums {
  double of_grad = 0, of_ends = 0;
};

struct Segment {
  Floats at;
  Places k;
  Floats part;
};

inline Segment segment(Floats u, const Line& line) {
  Floats at = (u - every(line.left)) * every(line.scale);
  if (!line.extended) at = min(every(line.points - 1), max(every(0), at));
  // NaN is in segment 0, and its part stays NaN.
  const Places k = truncated(min(max(at, every(0)), every(line.points - 2)));
  return {at, k, at - floats(k)};
}

template <class T>
void value(const T* u, T* y, int64_t n, const Table& table, const Line& line) {
  const auto one = [&](Floats x) {
    const Segment its = segment(x, line);
    return look_up(table.weight, line.points, its.k) + its.part * look_up(table.rises, line.points, its.k);
  };
  int64_t i = 0;
  for (; i + width <= n; i += width) store(y + i, one(load(u + i)));
  if (i < n) {
    T rest[width] = {};
    std::memcpy(rest, u + i, (n - i) * sizeof(T));
    store(rest, one(load(rest)));
    std::memcpy(y + i, rest, (n - i) * sizeof(T));
  }
}

// by_u = grad * (rises[k] * scale), and sums[k] gets grad and grad * part; either may be null. n is at most `chunk`.
template <class T>
void gradient(const T* grad, const T* u, T* by_u, Sums* sums, int64_t n, const Table& table, const Line& line) {
  // Room for a whole register at the end.
  int32_t places[chunk + width];
  float grads[chunk + width], ends[chunk + width];
  const auto one = [&](const T* from_grad, const T* from_u, T* out, int64_t i) {
    const Floats g = load(from_grad);
    const Segment its = segment(load(from_u), line);
    if (by_u) {
      const Floats steep = g * (look_up(table.rises, line.points, its.k) * every(line.scale));
      store(out, line.extended ? steep : zero_at_ends(steep, its.at, every(line.points - 1)));
    }
    store(places + i, its.k);
    store(grads + i, g);
    store(ends + i, g * its.part);
  };
  int64_t i = 0;
  for (; i + width <= n; i += width) one(grad + i, u + i, by_u ? by_u + i : nullptr, i);
  if (i < n) {
    T rest_grad[width] = {}, rest_u[width] = {}, rest[width];
    std::memcpy(rest_grad, grad + i, (n - i) * sizeof(T));
    std::memcpy(rest_u, u + i, (n - i) * sizeof(T));
    one(rest_grad, rest_u, rest, i);
    if (by_u) std::memcpy(by_u + i, rest, (n - i) * sizeof(T));
  }
  // One after the other: the order of the sums is that of the elements.
  for (int64_t j = 0; sums && j < n; ++j) {
    sums[places[j]].of_grad += grads[j];
    sums[places[j]].of_ends += ends[j];
  }
}

// What all elements of an array of shape (rows, sets, n) need: weight is of shape (sets, points), rises are the
// differences of all its numbers in a row.
struct Arrays {
  int64_t rows, sets, n;
  const float *weight, *rises;
  Line line;
  int threads;

  // run(first element, number of elements, set, table) for each chunk, by threads side by side or one after the other.
  template <class Run>
  void each_chunk(bool side_by_side, const Run& run) const {
    const int64_t chunks = (n + chunk - 1) / chunk;
#pragma omp parallel for num_threads(threads) if (side_by_side && threads > 1)
    for (int64_t c = 0; c < rows * sets * chunks; ++c) {
      const int64_t row = c / chunks, at = c % chunks * chunk, set = row % sets;
      const Table table(weight + set * line.points, rises + set * line.points, line.points);
      run(row * n + at, std::min(chunk, n - at), set, table);
    }
  }

  template <class T>
  void values(const T* u, T* y) const {
    each_chunk(true, [&](int64_t at, int64_t count, int64_t, const Table& table) {
      value(u + at, y + at, count, table, line);
    });
  }

  template <class T>
  void gradients(const T* grad, const T* u, T* by_u, double* by_weight) const {
    const int64_t numbers = sets * line.points;
    std::vector<Sums> sums(by_weight ? numbers : 0);
    // Threads that add to one table would do so in any order.
    each_chunk(!by_weight, [&](int64_t at, int64_t count, int64_t set, const Table& table) {
      gradient(grad + at, u + at, by_u ? by_u + at : nullptr, by_weight ? &sums[set * line.points] : nullptr, count,
               table, line);
    });
    // A segment's end is the next one's beginning. No segment begins at a set's last value.
    for (int64_t k = 0; by_weight && k < numbers; ++k)
      by_weight[k] = sums[k].of_grad - sums[k].of_ends + (k ? sums[k - 1].of_ends : 0.0);
  }
};

}  // namespace

extern "C" int register_width() { return width; }

extern "C" int most_points() { return most; }

extern "C" void interpolate(bool bfloat16, const void* u, void* y, int64_t rows, int64_t sets, int64_t n,
                            const float* weight, const float* rises, int points, float left, float scale,
                            bool extended, int threads) {
  const Arrays arrays{rows, sets, n, weight, rises, {left, scale, points, extended}, threads};
  if (bfloat16)
    arrays.values(static_cast<const BFloat16*>(u), static_cast<BFloat16*>(y));
  else
    arrays.values(static_cast<const float*>(u), static_cast<float*>(y));
}

// by_weight is of the shape of weight. Of by_u and by_weight, what is not wanted is null.
extern "C" void gradients(bool bfloat16, const void* u, const void* grad, void* by_u, double* by_weight, int64_t rows,
                          int64_t sets, int64_t n, const float* weight, const float* rises, int points, float left,
                          float scale, bool extended, int threads) {
  const Arrays arrays{rows, sets, n, weight, rises, {left, scale, points, extended}, threads};
  if (bfloat16)
    arrays.gradients(static_cast<const BFloat16*>(grad), static_cast<const BFloat16*>(u), static_cast<BFloat16*>(by_u),
                     by_weight);
  else
    arrays.gradients(static_cast<const float*>(grad), static_cast<const float*>(u), static_cast<float*>(by_u),
                     by_weight);
}

#endif
