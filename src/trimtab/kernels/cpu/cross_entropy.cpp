// Cross entropy over a frozen head that is kept as eight-bit codes, with the gradient of its input:
//
//     L = log Σ exp(z) - z_y,   z = h Wᵀ + b,   ∂L/∂h = (softmax(z) - e_y) W
//
// A block of rows at a time: its logits are made panel by panel, their largest and their sum
// kept along; then probabilities become codes, and these are multiplied with the transposed ones.

#include "cpu.h"

#if defined(TRIMTAB_X86)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,fma")
#include <immintrin.h>
#include <omp.h>

#include <cmath>
#include <limits>

#include "codes.h"

using namespace trimtab;

namespace {

struct Head {
  int columns, words;
  const float* inverse;
  const int8_t* there;
  const float* there_scales;
  const float* bias;
  const int8_t* back;
  const float* back_scales;
};

// Logits, in the precision of h, and for each lane of a row the largest and Σ exp(z - largest). These
// are of the logits as they are kept, so that the probabilities add up to one.
template <typename T>
struct Rows {
  std::vector<T> z;
  alignas(64) float most[kBlock][16], sum[kBlock][16];
};

// The logits of a panel, and what they add to each row's sum.
template <typename T>
void take_panel(const Block& block, const Head& head, int panel, Rows<T>& rows) {
  const __m512 low = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int i = 0; i < block.rows; ++i) {
    __m512 z[4], most = _mm512_load_ps(rows.most[i]);
    const __m512 before = most;
    for (int j = 0; j < 4; ++j) {
      const int at = panel * kPanel + 16 * j;
      const __mmask16 keep = first(head.words - at);
      const __m512 offset =
          head.bias ? _mm512_maskz_loadu_ps(keep, head.bias + at) : _mm512_setzero_ps();
      const __m512 scale = _mm512_maskz_loadu_ps(keep, head.there_scales + at);
      const __m512 sum = _mm512_load_ps(block.sum + i * kPanel + 16 * j);
      const __m512 v = _mm512_fmadd_ps(sum, scale, offset);
      T* to = rows.z.data() + size_t(i) * head.words + at;
      store16(to, keep, v);
      z[j] = _mm512_mask_mov_ps(low, keep, load16(to, keep));
      most = _mm512_max_ps(most, z[j]);
    }
    __m512 sum = _mm512_mul_ps(_mm512_load_ps(rows.sum[i]), exp16(_mm512_sub_ps(before, most)));
    for (int j = 0; j < 4; ++j) sum = _mm512_add_ps(sum, exp16(_mm512_sub_ps(z[j], most)));
    _mm512_store_ps(rows.most[i], most);
    _mm512_store_ps(rows.sum[i], sum);
  }
}

template <typename T>
float log_sum(const Rows<T>& rows, int i) {
  const __m512 most = _mm512_load_ps(rows.most[i]);
  const float top = _mm512_reduce_max_ps(most);
  const __m512 by = exp16(_mm512_sub_ps(most, _mm512_set1_ps(top)));
  return top + std::log(_mm512_reduce_add_ps(_mm512_mul_ps(_mm512_load_ps(rows.sum[i]), by)));
}

// softmax(z) - e_y as codes.
template <typename T>
void code_probabilities(const T* z, float lse, int64_t label, int words, uint8_t* codes,
                        float* scales) {
  for (int g = 0; g < groups_of(words); ++g) {
    const int start = g * kGroup, count = std::min(words - start, kGroup);
    __m512 held[kGroup / 16];
    for (int i = 0; i < kGroup / 16; ++i) {
      const __mmask16 keep = first(count - 16 * i);
      const __m512 v = load16(z + start + 16 * i, keep);
      held[i] = _mm512_maskz_mov_ps(keep, exp16(_mm512_sub_ps(v, _mm512_set1_ps(lse))));
    }
    if (label >= start && label < start + count) {
      const int at = int(label) - start;
      const __mmask16 one = __mmask16(1u << (at % 16));
      held[at / 16] = _mm512_mask_sub_ps(held[at / 16], one, held[at / 16], _mm512_set1_ps(1.0f));
    }
    scales[g] = code_group(held, count, codes + start);
  }
}

template <typename T>
void put_panel(const Block& block, const Head& head, int panel, T* dh) {
  for (int at = 0; at < kPanel && panel * kPanel + at < head.columns; at += 16) {
    const int column = panel * kPanel + at;
    const __mmask16 keep = first(head.columns - column);
    const __m512 scale = _mm512_maskz_loadu_ps(keep, head.back_scales + column);
    for (int i = 0; i < block.rows; ++i) {
      const __m512 v = _mm512_mul_ps(_mm512_load_ps(block.sum + i * kPanel + at), scale);
      store16(dh + size_t(i) * head.columns + column, keep, v);
    }
  }
}

template <typename T>
void cross_entropy(const T* h, const int64_t* labels, int count, const Head& head, float* losses,
                   T* dh) {
  const int step = block_rows(count, kBlock, omp_get_max_threads());
#pragma omp parallel
  {
    Block& block = block_of_thread();
    Block wide;  // rows as wide as the vocabulary
    Rows<T> rows;
    rows.z.resize(size_t(step) * head.words);
#pragma omp for schedule(dynamic, 1)
    for (int begin = 0; begin < count; begin += step) {
      block.code(h + size_t(begin) * head.columns, std::min(step, count - begin), head.columns,
                 head.inverse);
      for (int i = 0; i < block.rows; ++i) {
        const float low = std::numeric_limits<float>::lowest();
        _mm512_store_ps(rows.most[i], _mm512_set1_ps(low));
        _mm512_store_ps(rows.sum[i], _mm512_setzero_ps());
      }
      for (int panel = 0; panel < panels_of(head.words); ++panel) {
        block.times(head.there + panel * panel_bytes(head.columns));
        take_panel(block, head, panel, rows);
      }
      if (dh) wide.resize(block.rows, head.words);
      for (int i = 0; i < block.rows; ++i) {
        const T* z = rows.z.data() + size_t(i) * head.words;
        const int64_t label = labels[begin + i];
        const float lse = log_sum(rows, i);
        losses[begin + i] = lse - _mm512_cvtss_f32(load16(z + label, first(1)));
        if (!dh) continue;
        code_probabilities(z, lse, label, head.words, wide.codes.data() + size_t(i) * wide.stride(),
                           wide.scales.data() + size_t(i) * wide.groups());
      }
      for (int panel = 0; dh && panel < panels_of(head.columns); ++panel) {
        wide.times(head.back + panel * panel_bytes(head.words));
        put_panel(wide, head, panel, dh + size_t(begin) * head.columns);
      }
    }
  }
}

}  // namespace

// h (rows, columns), labels (rows,) within the words -> losses (rows,), and dh (rows, columns) unless
// that is null. `there` are the codes of W (words, columns), `back` those of its transpose.
TRIMTAB_EXPORT void trimtab_int8_cross_entropy(const void* h, int half, const int64_t* labels,
                                               int rows, int columns, int words,
                                               const float* inverse, const int8_t* there,
                                               const float* there_scales, const float* bias,
                                               const int8_t* back, const float* back_scales,
                                               float* losses, void* dh) {
  const Head head{columns, words, inverse, there, there_scales, bias, back, back_scales};
  if (half) {
    cross_entropy((const bfloat*)h, labels, rows, head, losses, (bfloat*)dh);
  } else {
    cross_entropy((const float*)h, labels, rows, head, losses, (float*)dh);
  }
}

#pragma GCC pop_options
#endif
