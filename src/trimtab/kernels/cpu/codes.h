// A product with a matrix kept as eight-bit codes, for a block of rows: what a linear map and the
// cross entropy of a head are made of.
#pragma once

#include <utility>
#include <vector>

#include "simd.h"

namespace trimtab {

constexpr int kGroup = 128;  // columns that share a scale
constexpr int kPanel = 64;   // outputs computed side by side: four registers
constexpr int kTile = 6;     // rows computed side by side
constexpr int kBlock = 96;   // rows of a block at most
constexpr int kHeader = kPanel * sizeof(int32_t);  // what 128 · Σ codes takes off each output

inline int groups_of(int columns) { return (columns + kGroup - 1) / kGroup; }
inline int panels_of(int outputs) { return (outputs + kPanel - 1) / kPanel; }
inline int depth_of(int columns, int group) {  // of a group, in steps of four columns
  return (std::min(kGroup, columns - group * kGroup) + 3) / 4;
}
inline int64_t panel_bytes(int columns) {
  int64_t bytes = 0;
  for (int g = 0; g < groups_of(columns); ++g) bytes += kHeader + depth_of(columns, g) * 4 * kPanel;
  return bytes;
}

// Up to 128 numbers as unsigned codes (a signed code + 128); returns their scale. The largest is taken
// over the bits without a sign, among which NaN is above all: it is not lost.
inline float code_group(const __m512 (&held)[kGroup / 16], int count, uint8_t* codes) {
  const __m512i positive = _mm512_set1_epi32(0x7fffffff);
  __m512i most = _mm512_setzero_si512();
  for (int i = 0; i < kGroup / 16; ++i) {
    most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_castps_si512(held[i]), positive));
  }
  const uint32_t bits = _mm512_reduce_max_epu32(most);
  float largest;
  std::memcpy(&largest, &bits, 4);
  const __m512 by = _mm512_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
  for (int i = 0; i < kGroup / 16 && 16 * i < count; ++i) {
    __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(held[i], by));
    code = _mm512_add_epi32(code, _mm512_set1_epi32(128));
    _mm_storeu_si128((__m128i*)(codes + 16 * i), _mm512_cvtusepi32_epi8(code));
  }
  return largest / 127.0f;
}

// A row of x, its columns multiplied by `inverse` if that is there.
template <typename T>
inline void code_row(const T* x, const float* inverse, int columns, uint8_t* codes, float* scales) {
  for (int g = 0; g < groups_of(columns); ++g) {
    const int start = g * kGroup, count = std::min(columns - start, kGroup);
    __m512 held[kGroup / 16];
    for (int i = 0; i < kGroup / 16; ++i) {
      const __mmask16 keep = first(count - 16 * i);
      held[i] = load16(x + start + 16 * i, keep);
      if (inverse) {
        held[i] = _mm512_mul_ps(held[i], _mm512_maskz_loadu_ps(keep, inverse + start + 16 * i));
      }
    }
    scales[g] = code_group(held, count, codes + start);
  }
}

inline __m512i four(const uint8_t* codes) {  // the same four columns for every output
  int32_t bits;
  std::memcpy(&bits, codes, 4);
  return _mm512_set1_epi32(bits);
}

inline void add(__m512i part, float scale, float* sum, bool begun) {
  const __m512 value = _mm512_cvtepi32_ps(part), by = _mm512_set1_ps(scale);
  _mm512_store_ps(sum, begun ? _mm512_fmadd_ps(value, by, _mm512_load_ps(sum))
                             : _mm512_mul_ps(value, by));
}

// `rows` rows of codes by one group of a panel, upon what is in `sum` or in its place. The compiler
// keeps an array in registers only where every index is a constant from the start: hence the folds.
template <int rows, int... of>
inline void tile(std::integer_sequence<int, of...>, const uint8_t* codes, int stride,
                 const int8_t* packed, int depth, const float* scales, int groups, float* sum,
                 bool begun) {
  __m512i part[rows * 4];
  ((part[of] = _mm512_loadu_si512(packed + 64 * (of % 4))), ...);
  const int8_t* at = packed + kHeader;
  for (int k = 0; k < depth; ++k, at += 4 * kPanel) {
    const __m512i w[4] = {_mm512_loadu_si512(at), _mm512_loadu_si512(at + 64),
                          _mm512_loadu_si512(at + 128), _mm512_loadu_si512(at + 192)};
    (multiply(part[of], four(codes + (of / 4) * stride + 4 * k), w[of % 4]), ...);
  }
  (add(part[of], scales[(of / 4) * groups], sum + 16 * of, begun), ...);
}

inline void tiles(const uint8_t* codes, int stride, int rows, const int8_t* packed, int depth,
           const float* scales, int groups, float* sum, bool begun) {
  int i = 0;
  for (; i + kTile <= rows; i += kTile) {
    tile<kTile>(std::make_integer_sequence<int, 4 * kTile>(), codes + i * stride, stride, packed,
                depth, scales + i * groups, groups, sum + i * kPanel, begun);
  }
  for (; i < rows; ++i) {
    tile<1>(std::make_integer_sequence<int, 4>(), codes + i * stride, stride, packed, depth,
            scales + i * groups, groups, sum + i * kPanel, begun);
  }
}

// Rows of codes with their scales, and a panel's sums for them.
struct Block {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  std::vector<uint32_t> pairs;
  std::vector<float> down;
  int columns = 0, rows = 0;
  alignas(64) float sum[kBlock * kPanel];

  int groups() const { return groups_of(columns); }
  int stride() const { return groups() * kGroup; }

  void resize(int rows_, int columns_) {
    rows = rows_, columns = columns_;
    if (codes.size() < size_t(kBlock) * stride()) codes.resize(size_t(kBlock) * stride());
    if (scales.size() < size_t(kBlock) * groups()) scales.resize(size_t(kBlock) * groups());
  }

  template <typename T>
  void code(const T* x, int count, int width, const float* inverse) {
    resize(count, width);
    for (int i = 0; i < rows; ++i) {
      code_row(x + size_t(i) * columns, inverse, columns, codes.data() + size_t(i) * stride(),
               scales.data() + i * groups());
    }
  }

  // sum (rows, 64) = the rows by one panel.
  void times(const int8_t* panel) {
    for (int g = 0; g < groups(); ++g) {
      const int depth = depth_of(columns, g);
      tiles(codes.data() + g * kGroup, stride(), rows, panel, depth, scales.data() + g, groups(),
            sum, g > 0);
      panel += kHeader + size_t(depth) * 4 * kPanel;
    }
  }
};

// Rows of each block, so that all threads have as many to do: no more than `most`.
inline int block_rows(int rows, int most, int threads) {
  int blocks = std::max(1, (rows + most - 1) / most);
  blocks = (blocks + threads - 1) / threads * threads;
  return std::max(1, std::min(most, ((rows + blocks - 1) / blocks + kTile - 1) / kTile * kTile));
}

inline Block& block_of_thread() {
  static thread_local Block own;
  return own;
}

}  // namespace trimtab
