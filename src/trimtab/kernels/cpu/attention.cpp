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
#include <vector>

#include "pairs.h"

using namespace trimtab;

namespace {

constexpr int kQueries = 48;         // in a block
constexpr float kLowest = -3.0e38f;  // the score of what may not be looked at

struct Strides {
  int64_t batch, head, row;
  int64_t at(int b, int h, int i) const { return b * batch + h * head + i * row; }
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
    const uint8_t* row = w.mask + w.mask_strides.at(b, h, first_query + i);
    int low = 0, high = w.keys;
    while (low < begin && !row[low]) ++low;
    while (high > end && !row[high - 1]) --high;
    begin = std::min(begin, low), end = std::max(end, high);
  }
  return begin < end ? Span{begin / 2 * 2, end} : Span{0, w.keys};
}

// Scores of a row as they enter the softmax: scaled; where one may not look, the lowest number, so
// that who may look nowhere looks everywhere; after the last key nothing at all.
inline __m512 score(const Work& w, int b, int h, int query, const Span& span, int j,
                    const float* row) {
  const __m512 none = _mm512_set1_ps(-INFINITY);
  int left = span.end - (span.begin + j);
  if (w.causal) left = std::min(left, query + 1 - (span.begin + j));
  const __mmask16 there = first(left);
  __m512 z = _mm512_mul_ps(_mm512_loadu_ps(row + j), _mm512_set1_ps(w.scale));
  if (w.mask) {
    const uint8_t* at = w.mask + w.mask_strides.at(b, h, query) + span.begin + j;
    const __m128i bytes = _mm_maskz_loadu_epi8(there, at);
    const __mmask16 may = _mm_test_epi8_mask(bytes, bytes);
    z = _mm512_mask_mov_ps(_mm512_set1_ps(kLowest), may, z);
  }
  return _mm512_mask_mov_ps(none, there, z);
}

// The softmax of a row of scores, in place and as bf16; returns the logarithm of its sum.
float softmax(const Work& w, int b, int h, int query, const Span& span, float* row, bfloat* p) {
  const int keys = span.end - span.begin;
  __m512 most = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
  for (int j = 0; j < keys; j += 16) {
    const __m512 z = score(w, b, h, query, span, j, row);
    most = _mm512_max_ps(most, z);
    _mm512_storeu_ps(row + j, z);
  }
  const float top = _mm512_reduce_max_ps(most);
  for (int j = 0; j < keys; j += 16) {
    const __m512 e = exp16(_mm512_sub_ps(_mm512_loadu_ps(row + j), _mm512_set1_ps(top)));
    total = _mm512_add_ps(total, e);
    _mm512_storeu_ps(row + j, e);
  }
  const float whole = _mm512_reduce_add_ps(total);
  for (int j = 0; j < keys; j += 16) {
    store16(p + j, 0xffff, _mm512_mul_ps(_mm512_loadu_ps(row + j), _mm512_set1_ps(1.0f / whole)));
  }
  return top + std::log(whole);
}

// Rows of sums as they are given out.
void give(const float* sum, int rows, int width, int columns, bfloat* to, int64_t stride) {
  for (int i = 0; i < rows; ++i) {
    const float* row = sum + size_t(i) * width;
    for (int c = 0; c < columns; c += 16) {
      store16(to + i * stride + c, first(columns - c), _mm512_loadu_ps(row + c));
    }
  }
}

// One block of queries: y, and for each query the logarithm of what its softmax was divided by.
void look(const Work& w, int b, int h, int from, const bfloat* q, bfloat* y, int64_t stride,
          float* lse, Room& own) {
  const int wide = filled(w.width), all = filled(w.keys);
  const int count = std::min(kQueries, w.queries - from);
  const Span span = seen(w, b, h, from, count);
  const int keys = span.end - span.begin, width = filled(keys);
  float* scores = sized(own.scores, size_t(kQueries) * (all + 16));
  bfloat* p = sized(own.p, size_t(kQueries) * (all + 16));
  float* sum = sized(own.y, size_t(kQueries) * wide);
  product(q, 2 * w.q.row, 4, own.k_columns.data() + span.begin, all, w.width / 2, count, keys,
          scores, width);
  for (int i = 0; i < count; ++i) {
    const float found = softmax(w, b, h, from + i, span, scores + i * width, p + i * width);
    if (lse) lse[i] = found;
  }
  product(p, 2 * width, 4, own.v_rows.data() + size_t(span.begin / 2) * wide, wide, (keys + 1) / 2,
          count, w.width, sum, wide);
  give(sum, count, wide, w.width, y, stride);
}

void forward(const Work& w, const bfloat* q, const bfloat* k, const bfloat* v, bfloat* y,
             const Strides& out, float* lse) {
  const int each = w.heads / w.groups;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int b = 0; b < w.batch; ++b) {
    for (int g = 0; g < w.groups; ++g) {
      Room& own = room();
      pack_columns(k + w.k.at(b, g, 0), w.k.row, w.keys, w.width,
                   sized(own.k_columns, size_t(w.width / 2) * filled(w.keys) + 16));
      pack_rows(v + w.v.at(b, g, 0), w.v.row, w.keys, w.width,
                sized(own.v_rows, size_t(w.keys + 1) / 2 * filled(w.width)));
      for (int h = g * each; h < (g + 1) * each; ++h) {
        for (int from = 0; from < w.queries; from += kQueries) {
          float* sums = lse ? lse + (size_t(b) * w.heads + h) * w.queries + from : nullptr;
          look(w, b, h, from, q + w.q.at(b, h, from), y + out.at(b, h, from), out.row, sums, own);
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

// A row and the one `next` numbers further (0: none) as pairs, and one after the other if asked for.
inline void give_pairs(const float* one, int next, int width, uint32_t* pairs, bfloat* rows) {
  for (int j = 0; j < width; j += 16) {
    const __m512i low = halves16(_mm512_loadu_ps(one + j));
    __m512i high = _mm512_setzero_si512();
    if (next) high = halves16(_mm512_loadu_ps(one + next + j));
    _mm512_storeu_si512(pairs + j, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    if (!rows) continue;
    _mm256_storeu_si256((__m256i*)(rows + j), _mm512_cvtepi32_epi16(low));
    if (next) _mm256_storeu_si256((__m256i*)(rows + next + j), _mm512_cvtepi32_epi16(high));
  }
}

// One block of queries: dq, and what it adds to the sums of dk and dv.
void look_back(const Work& w, int b, int h, int from, const bfloat* q, const bfloat* dy,
               int64_t dy_row, const float* lse, bfloat* dq, int64_t dq_row, Room& own) {
  const int wide = filled(w.width), all = filled(w.keys);
  const int count = std::min(kQueries, w.queries - from), pairs = (count + 1) / 2;
  const Span span = seen(w, b, h, from, count);
  const int keys = span.end - span.begin, width = filled(keys);
  float* scores = sized(own.scores, size_t(kQueries) * (all + 16));
  float* dp = sized(own.more, size_t(kQueries) * (all + 16));
  bfloat* ds = sized(own.p, size_t(kQueries) * (all + 16));
  uint32_t* p_pairs = sized(own.p_pairs, size_t(kQueries / 2) * (all + 16));
  uint32_t* ds_pairs = sized(own.ds_pairs, size_t(kQueries / 2) * (all + 16));
  uint32_t* block = sized(own.block, size_t(kQueries / 2) * wide);
  float* sum = sized(own.y, size_t(kQueries) * wide);
  product(q, 2 * w.q.row, 4, own.k_columns.data() + span.begin, all, w.width / 2, count, keys,
          scores, width);
  product(dy, 2 * dy_row, 4, own.v_columns.data() + span.begin, all, w.width / 2, count, keys, dp,
          width);
  for (int i = 0; i < count; ++i) {
    slopes(w, b, h, from + i, span, lse[i], scores + i * width, dp + i * width);
  }
  for (int i = 0; i < count; i += 2) {
    const int next = i + 1 < count ? width : 0;
    give_pairs(scores + i * width, next, width, p_pairs + i / 2 * width, nullptr);
    give_pairs(dp + i * width, next, width, ds_pairs + i / 2 * width, ds + i * width);
  }
  product(ds, 2 * width, 4, own.k_rows.data() + size_t(span.begin / 2) * wide, wide, (keys + 1) / 2,
          count, w.width, sum, wide);
  give(sum, count, wide, w.width, dq, dq_row);
  float* dk = own.dk.data() + size_t(span.begin) * wide;
  float* dv = own.dv.data() + size_t(span.begin) * wide;
  pack_rows(q, w.q.row, count, w.width, block);
  product(ds_pairs, 4, 4 * width, block, wide, pairs, keys, w.width, dk, wide, true);
  pack_rows(dy, dy_row, count, w.width, block);
  product(p_pairs, 4, 4 * width, block, wide, pairs, keys, w.width, dv, wide, true);
}

void backward(const Work& w, const bfloat* q, const bfloat* k, const bfloat* v, const float* lse,
              const bfloat* dy, const Strides& dy_at, bfloat* dq, bfloat* dk, bfloat* dv,
              const Strides& dq_at, const Strides& dk_at, const Strides& dv_at) {
  const int wide = filled(w.width), each = w.heads / w.groups;
  const size_t columns = size_t(w.width / 2) * filled(w.keys) + 16, sums = size_t(w.keys) * wide;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int b = 0; b < w.batch; ++b) {
    for (int g = 0; g < w.groups; ++g) {
      Room& own = room();
      const bfloat* keys = k + w.k.at(b, g, 0);
      pack_columns(keys, w.k.row, w.keys, w.width, sized(own.k_columns, columns));
      pack_columns(v + w.v.at(b, g, 0), w.v.row, w.keys, w.width, sized(own.v_columns, columns));
      pack_rows(keys, w.k.row, w.keys, w.width, sized(own.k_rows, size_t(w.keys + 1) / 2 * wide));
      own.dk.assign(sums, 0.0f);
      own.dv.assign(sums, 0.0f);
      for (int h = g * each; h < (g + 1) * each; ++h) {
        for (int from = 0; from < w.queries; from += kQueries) {
          look_back(w, b, h, from, q + w.q.at(b, h, from), dy + dy_at.at(b, h, from), dy_at.row,
                    lse + (size_t(b) * w.heads + h) * w.queries + from, dq + dq_at.at(b, h, from),
                    dq_at.row, own);
        }
      }
      give(own.dk.data(), w.keys, wide, w.width, dk + dk_at.at(b, g, 0), dk_at.row);
      give(own.dv.data(), w.keys, wide, w.width, dv + dv_at.at(b, g, 0), dv_at.row);
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
