// Attention, forward and backward, by blocks of queries; what is kept is a number for each query.
//
//     p = softmax(c q kᵀ),   y = p v
//     dp = dy vᵀ,   ds = c p ⊙ (dp - Σ p ⊙ dp),   dq = ds k,   dk = dsᵀ q,   dv = pᵀ dy
//
// All products are of pairs of bf16 with sums in fp32. The right factor is packed once for each head
// of keys, as pairs along the sum; the left one is read where it lies. Queries of several heads may
// share keys. Nothing is copied to stand side by side: every tensor comes with its strides.

#include "cpu.h"

#if defined(TRIMTAB_X86)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,fma")
#include <immintrin.h>

#include <cmath>
#include <utility>
#include <vector>

#include "simd.h"

using namespace trimtab;

namespace {

constexpr int kQueries = 48;  // in a block
constexpr int kTile = 6;      // rows computed side by side
constexpr int kPanel = 64;    // columns computed side by side
constexpr float kLowest = -3.0e38f;  // the score of what may not be looked at

int filled(int size) { return (size + 15) / 16 * 16; }

// ---- the product ----

inline __m512i two(const char* at) {
  int32_t bits;
  std::memcpy(&bits, at, 4);
  return _mm512_set1_epi32(bits);
}

inline void put(float* to, __m512 value, bool more) {
  _mm512_storeu_ps(to, more ? _mm512_add_ps(value, _mm512_loadu_ps(to)) : value);
}

// C (rows, 16 · wide) = A B, or more upon it: A's pairs at `row` and `step` bytes from one another.
template <int rows, int wide, int... of>
inline void tile(std::integer_sequence<int, of...>, const char* A, int64_t row, int64_t step,
                 const uint32_t* B, int stride, int steps, float* C, int width, bool more) {
  __m512 sum[rows * wide];
  ((sum[of] = _mm512_setzero_ps()), ...);
  for (int k = 0; k < steps; ++k, A += step, B += stride) {
    (multiply(sum[of], two(A + (of / wide) * row), _mm512_loadu_si512(B + 16 * (of % wide))), ...);
  }
  (put(C + (of / wide) * width + 16 * (of % wide), sum[of], more), ...);
}

template <int wide>
void strip(const char* A, int64_t row, int64_t step, const uint32_t* B, int stride, int steps,
           int rows, float* C, int width, bool more) {
  int i = 0;
  for (; i + kTile <= rows; i += kTile) {
    tile<kTile, wide>(std::make_integer_sequence<int, kTile * wide>(), A + i * row, row, step, B,
                      stride, steps, C + i * width, width, more);
  }
  for (; i + 2 <= rows; i += 2) {
    tile<2, wide>(std::make_integer_sequence<int, 2 * wide>(), A + i * row, row, step, B, stride,
                  steps, C + i * width, width, more);
  }
  for (; i < rows; ++i) {
    tile<1, wide>(std::make_integer_sequence<int, wide>(), A + i * row, row, step, B, stride, steps,
                  C + i * width, width, more);
  }
}

// C (rows, columns) of width `width`; B (steps, columns) in pairs, of width `stride`, both filled up.
void product(const void* A, int64_t row, int64_t step, const uint32_t* B, int stride, int steps,
             int rows, int columns, float* C, int width, bool more = false) {
  const char* a = (const char*)A;
  for (int at = 0; at < columns; at += kPanel) {
    const int wide = std::min(4, (columns - at + 15) / 16);
    const auto run = wide == 4 ? strip<4> : wide == 3 ? strip<3> : wide == 2 ? strip<2> : strip<1>;
    run(a, row, step, B + at, stride, steps, rows, C + at, width, more);
  }
}

// ---- packing ----

// x (rows, columns) -> (rows / 2, filled columns): pairs of neighbouring rows.
void pack_rows(const bfloat* x, int64_t stride, int rows, int columns, uint32_t* out) {
  const int width = filled(columns);
  for (int i = 0; i < rows; i += 2, out += width) {
    const bfloat* one = x + i * stride;
    const bfloat* other = one + stride;
    for (int k = 0; k < columns; k += 16) {
      const __mmask16 keep = first(columns - k), both = i + 1 < rows ? keep : __mmask16(0);
      const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(keep, one + k));
      const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(both, other + k));
      _mm512_storeu_si512(out + k, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

// x (rows, columns) -> (columns / 2, filled rows): pairs of neighbouring columns, transposed.
void pack_columns(const bfloat* x, int64_t stride, int rows, int columns, uint32_t* out) {
  const int width = filled(rows);
  for (int j = 0; j < width; ++j) {
    const char* row = (const char*)(x + j * stride);
    for (int i = 0; i < columns / 2; ++i) {
      uint32_t bits = 0;
      if (j < rows) std::memcpy(&bits, row + 4 * i, 4);
      out[size_t(i) * width + j] = bits;
    }
  }
}

// ---- what is computed ----

struct Strides {
  int64_t batch, head, row;
};

struct Work {
  int batch, heads, groups, queries, keys, width;
  float scale;
  int causal;
  const uint8_t* mask;  // (batch, head, query, key), or null; keys side by side
  Strides mask_strides, q, k, v;
};

struct Room {
  std::vector<uint32_t> k_rows, k_columns, v_rows, v_columns, block;
  std::vector<float> scores, more, y, dk, dv;
  std::vector<bfloat> p;
  std::vector<uint32_t> p_pairs, ds_pairs;
};

Room& room() {
  static thread_local Room own;
  return own;
}

template <typename T>
T* sized(std::vector<T>& of, size_t size) {
  if (of.size() < size) of.resize(size);
  return of.data();
}

// What a block of queries looks at: keys from an even one on.
struct Span {
  int begin, end;
};

Span seen(const Work& w, int b, int h, int first_query, int count) {
  if (w.causal) return {0, std::min(w.keys, first_query + count)};
  if (!w.mask) return {0, w.keys};
  int begin = w.keys, end = 0;
  for (int i = 0; i < count; ++i) {
    const uint8_t* row = w.mask + b * w.mask_strides.batch + h * w.mask_strides.head +
                         (first_query + i) * w.mask_strides.row;
    int low = 0, high = w.keys;
    while (low < begin && !row[low]) ++low;
    while (high > end && !row[high - 1]) --high;
    begin = std::min(begin, low), end = std::max(end, high);
  }
  return begin < end ? Span{begin / 2 * 2, end} : Span{0, w.keys};
}

// Scores of a row as they enter the softmax: scaled; where one may not look, the lowest number, so
// that who may look nowhere looks everywhere; after the last key nothing at all.
inline __m512 score(const Work& w, int b, int h, int query, const Span& span, int j, const float* row) {
  const __m512 none = _mm512_set1_ps(-INFINITY);
  int left = span.end - (span.begin + j);
  if (w.causal) left = std::min(left, query + 1 - (span.begin + j));
  const __mmask16 there = first(left);
  __m512 z = _mm512_mul_ps(_mm512_loadu_ps(row + j), _mm512_set1_ps(w.scale));
  if (w.mask) {
    const uint8_t* at = w.mask + b * w.mask_strides.batch + h * w.mask_strides.head +
                        query * w.mask_strides.row + span.begin + j;
    const __m128i bytes = _mm_maskz_loadu_epi8(there, at);
    const __mmask16 may = _mm_test_epi8_mask(bytes, bytes);
    z = _mm512_mask_mov_ps(_mm512_set1_ps(kLowest), may, z);
  }
  return _mm512_mask_mov_ps(none, there, z);
}

inline __m512i halves(__m512 v) {  // bf16 in the lower half of each lane
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  return _mm512_srli_epi32(
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
}

void forward(const Work& w, const bfloat* q, const bfloat* k, const bfloat* v, bfloat* y,
             const Strides& out, float* lse) {
  const int wide = filled(w.width), each = w.heads / w.groups;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int b = 0; b < w.batch; ++b) {
    for (int g = 0; g < w.groups; ++g) {
      Room& own = room();
      const int all = filled(w.keys);
      uint32_t* kt = sized(own.k_columns, size_t(w.width / 2) * all + 16);
      uint32_t* vp = sized(own.v_rows, size_t(w.keys + 1) / 2 * wide);
      pack_columns(k + b * w.k.batch + g * w.k.head, w.k.row, w.keys, w.width, kt);
      pack_rows(v + b * w.v.batch + g * w.v.head, w.v.row, w.keys, w.width, vp);
      float* scores = sized(own.scores, size_t(kQueries) * (all + 16));
      bfloat* p = sized(own.p, size_t(kQueries) * (all + 16));
      float* sum = sized(own.y, size_t(kQueries) * wide);
      for (int h = g * each; h < (g + 1) * each; ++h) {
        for (int from = 0; from < w.queries; from += kQueries) {
          const int count = std::min(kQueries, w.queries - from);
          const Span span = seen(w, b, h, from, count);
          const int keys = span.end - span.begin, width = filled(keys);
          product(q + b * w.q.batch + h * w.q.head + from * w.q.row, 2 * w.q.row, 4,
                  kt + span.begin, all, w.width / 2, count, keys, scores, width);
          for (int i = 0; i < count; ++i) {
            float* row = scores + i * width;
            __m512 most = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
            for (int j = 0; j < keys; j += 16) {
              const __m512 z = score(w, b, h, from + i, span, j, row);
              most = _mm512_max_ps(most, z);
              _mm512_storeu_ps(row + j, z);
            }
            const float top = _mm512_reduce_max_ps(most);
            for (int j = 0; j < keys; j += 16) {
              const __m512 z = _mm512_sub_ps(_mm512_loadu_ps(row + j), _mm512_set1_ps(top));
              const __m512 e = exp16(z);
              total = _mm512_add_ps(total, e);
              _mm512_storeu_ps(row + j, e);
            }
            const float whole = _mm512_reduce_add_ps(total);
            const __m512 by = _mm512_set1_ps(1.0f / whole);
            for (int j = 0; j < width; j += 16) {
              store16(p + i * width + j, 0xffff, _mm512_mul_ps(_mm512_loadu_ps(row + j), by));
            }
            if (lse) lse[(size_t(b) * w.heads + h) * w.queries + from + i] = top + std::log(whole);
          }
          product(p, 2 * width, 4, vp + size_t(span.begin / 2) * wide, wide, (keys + 1) / 2, count,
                  w.width, sum, wide);
          for (int i = 0; i < count; ++i) {
            bfloat* to = y + b * out.batch + h * out.head + (from + i) * out.row;
            for (int c = 0; c < w.width; c += 16) {
              store16(to + c, first(w.width - c), _mm512_loadu_ps(sum + i * wide + c));
            }
          }
        }
      }
    }
  }
}

// p and ds of a row, and Σ p ⊙ dp on the way; in place of the scores and of dp.
inline void slopes(const Work& w, int b, int h, int query, const Span& span, float lse, float* row,
                   float* dp) {
  const int keys = span.end - span.begin;
  __m512 dot = _mm512_setzero_ps();
  const bool everywhere = lse < 0.5f * kLowest;  // it may look nowhere
  for (int j = 0; j < keys; j += 16) {
    const __mmask16 there = first(keys - j);
    const __m512 z = score(w, b, h, query, span, j, row);
    __m512 p = exp16(_mm512_sub_ps(z, _mm512_set1_ps(lse)));
    if (everywhere) p = _mm512_maskz_mov_ps(there, _mm512_set1_ps(1.0f / keys));
    const __m512 own = _mm512_maskz_loadu_ps(there, dp + j);
    dot = _mm512_fmadd_ps(p, own, dot);
    _mm512_storeu_ps(row + j, p);
    _mm512_storeu_ps(dp + j, own);
  }
  const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(dot)), by = _mm512_set1_ps(w.scale);
  for (int j = 0; j < keys; j += 16) {
    const __m512 change = _mm512_sub_ps(_mm512_loadu_ps(dp + j), mean);
    _mm512_storeu_ps(dp + j, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(row + j), by), change));
  }
}

// Two rows as pairs, and one after the other if `rows` is there; the second may be missing.
inline void give_pairs(const float* one, const float* other, int width, uint32_t* pairs,
                       bfloat* rows) {
  for (int j = 0; j < width; j += 16) {
    const __m512i low = halves(_mm512_loadu_ps(one + j));
    const __m512i high = other ? halves(_mm512_loadu_ps(other + j)) : _mm512_setzero_si512();
    _mm512_storeu_si512(pairs + j, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    if (!rows) continue;
    _mm256_storeu_si256((__m256i*)(rows + j), _mm512_cvtepi32_epi16(low));
    if (other) _mm256_storeu_si256((__m256i*)(rows + width + j), _mm512_cvtepi32_epi16(high));
  }
}

void backward(const Work& w, const bfloat* q, const bfloat* k, const bfloat* v, const float* lse,
              const bfloat* dy, const Strides& dy_at, bfloat* dq, bfloat* dk, bfloat* dv,
              const Strides& dq_at, const Strides& dk_at, const Strides& dv_at) {
  const int wide = filled(w.width), each = w.heads / w.groups;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int b = 0; b < w.batch; ++b) {
    for (int g = 0; g < w.groups; ++g) {
      Room& own = room();
      const int all = filled(w.keys);
      uint32_t* kt = sized(own.k_columns, size_t(w.width / 2) * all + 16);
      uint32_t* vt = sized(own.v_columns, size_t(w.width / 2) * all + 16);
      uint32_t* kp = sized(own.k_rows, size_t(w.keys + 1) / 2 * wide);
      pack_columns(k + b * w.k.batch + g * w.k.head, w.k.row, w.keys, w.width, kt);
      pack_columns(v + b * w.v.batch + g * w.v.head, w.v.row, w.keys, w.width, vt);
      pack_rows(k + b * w.k.batch + g * w.k.head, w.k.row, w.keys, w.width, kp);
      float* scores = sized(own.scores, size_t(kQueries) * (all + 16));
      float* dp = sized(own.more, size_t(kQueries) * (all + 16));
      bfloat* ds = sized(own.p, size_t(kQueries) * (all + 16));
      uint32_t* p_pairs = sized(own.p_pairs, size_t(kQueries / 2) * (all + 16));
      uint32_t* ds_pairs = sized(own.ds_pairs, size_t(kQueries / 2) * (all + 16));
      uint32_t* block = sized(own.block, size_t(kQueries / 2) * wide);
      float* sum = sized(own.y, size_t(kQueries) * wide);
      float* dk_sum = sized(own.dk, size_t(w.keys) * wide);
      float* dv_sum = sized(own.dv, size_t(w.keys) * wide);
      std::fill(dk_sum, dk_sum + size_t(w.keys) * wide, 0.0f);
      std::fill(dv_sum, dv_sum + size_t(w.keys) * wide, 0.0f);
      for (int h = g * each; h < (g + 1) * each; ++h) {
        for (int from = 0; from < w.queries; from += kQueries) {
          const int count = std::min(kQueries, w.queries - from);
          const Span span = seen(w, b, h, from, count);
          const int keys = span.end - span.begin, width = filled(keys);
          const bfloat* own_q = q + b * w.q.batch + h * w.q.head + from * w.q.row;
          const bfloat* own_dy = dy + b * dy_at.batch + h * dy_at.head + from * dy_at.row;
          product(own_q, 2 * w.q.row, 4, kt + span.begin, all, w.width / 2, count, keys, scores,
                  width);
          product(own_dy, 2 * dy_at.row, 4, vt + span.begin, all, w.width / 2, count, keys, dp,
                  width);
          for (int i = 0; i < count; ++i) {
            const float own_lse = lse[(size_t(b) * w.heads + h) * w.queries + from + i];
            slopes(w, b, h, from + i, span, own_lse, scores + i * width, dp + i * width);
          }
          for (int i = 0; i < count; i += 2) {
            const bool both = i + 1 < count;
            const float* one = scores + i * width;
            give_pairs(one, both ? one + width : nullptr, width, p_pairs + i / 2 * width, nullptr);
            const float* slope = dp + i * width;
            give_pairs(slope, both ? slope + width : nullptr, width, ds_pairs + i / 2 * width,
                       ds + i * width);
          }
          product(ds, 2 * width, 4, kp + size_t(span.begin / 2) * wide, wide, (keys + 1) / 2, count,
                  w.width, sum, wide);
          for (int i = 0; i < count; ++i) {
            bfloat* to = dq + b * dq_at.batch + h * dq_at.head + (from + i) * dq_at.row;
            for (int c = 0; c < w.width; c += 16) {
              store16(to + c, first(w.width - c), _mm512_loadu_ps(sum + i * wide + c));
            }
          }
          const size_t at = size_t(span.begin) * wide;
          pack_rows(own_q, w.q.row, count, w.width, block);
          product(ds_pairs, 4, 4 * width, block, wide, (count + 1) / 2, keys, w.width, dk_sum + at,
                  wide, true);
          pack_rows(own_dy, dy_at.row, count, w.width, block);
          product(p_pairs, 4, 4 * width, block, wide, (count + 1) / 2, keys, w.width, dv_sum + at,
                  wide, true);
        }
      }
      for (int j = 0; j < w.keys; ++j) {
        bfloat* to_k = dk + b * dk_at.batch + g * dk_at.head + j * dk_at.row;
        bfloat* to_v = dv + b * dv_at.batch + g * dv_at.head + j * dv_at.row;
        for (int c = 0; c < w.width; c += 16) {
          store16(to_k + c, first(w.width - c), _mm512_loadu_ps(dk_sum + size_t(j) * wide + c));
          store16(to_v + c, first(w.width - c), _mm512_loadu_ps(dv_sum + size_t(j) * wide + c));
        }
      }
    }
  }
}

}  // namespace

TRIMTAB_EXPORT int trimtab_attention_here() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16");
}

// `sizes`: batch, heads, heads of keys, queries, keys, width (even). `strides`: those of batch, head
// and row, in elements, of the mask, q, k, v and y. lse (batch, heads, queries) may be null.
TRIMTAB_EXPORT void trimtab_attention(const void* q, const void* k, const void* v,
                                      const uint8_t* mask, const int* sizes, const Strides* strides,
                                      float scale, int causal, void* y, float* lse) {
  const Work w{sizes[0], sizes[1], sizes[2], sizes[3],   sizes[4],   sizes[5],  scale,
               causal,   mask,     strides[0], strides[1], strides[2], strides[3]};
  forward(w, (const bfloat*)q, (const bfloat*)k, (const bfloat*)v, (bfloat*)y, strides[4], lse);
}

// As above, with dy in the place of y, then dq, dk and dv.
TRIMTAB_EXPORT void trimtab_attention_backward(const void* q, const void* k, const void* v,
                                               const uint8_t* mask, const int* sizes,
                                               const Strides* strides, float scale, int causal,
                                               const float* lse, const void* dy, void* dq, void* dk,
                                               void* dv) {
  const Work w{sizes[0], sizes[1], sizes[2], sizes[3],   sizes[4],   sizes[5],  scale,
               causal,   mask,     strides[0], strides[1], strides[2], strides[3]};
  backward(w, (const bfloat*)q, (const bfloat*)k, (const bfloat*)v, lse, (const bfloat*)dy,
           strides[4], (bfloat*)dq, (bfloat*)dk, (bfloat*)dv, strides[5], strides[6], strides[7]);
}

#pragma GCC pop_options
#else
TRIMTAB_EXPORT int trimtab_attention_here() { return 0; }
#endif
