// Products of pairs of bf16 with sums in fp32: the right factor packed as pairs along the sum, the
// left one read where it lies.
#pragma once

#include <utility>

#include "simd.h"

namespace trimtab {

constexpr int kSide = 6;    // rows computed side by side
constexpr int kStrip = 64;  // columns computed side by side

inline int filled(int size) { return (size + 15) / 16 * 16; }

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
inline void pair_tile(std::integer_sequence<int, of...>, const char* A, int64_t row, int64_t step,
                 const uint32_t* B, int stride, int steps, float* C, int width, bool more) {
  __m512 sum[rows * wide];
  ((sum[of] = _mm512_setzero_ps()), ...);
  for (int k = 0; k < steps; ++k, A += step, B += stride) {
    (multiply(sum[of], two(A + (of / wide) * row), _mm512_loadu_si512(B + 16 * (of % wide))), ...);
  }
  (put(C + (of / wide) * width + 16 * (of % wide), sum[of], more), ...);
}

template <int wide>
void row_strip(const char* A, int64_t row, int64_t step, const uint32_t* B, int stride, int steps,
           int rows, float* C, int width, bool more) {
  int i = 0;
  for (; i + kSide <= rows; i += kSide) {
    pair_tile<kSide, wide>(std::make_integer_sequence<int, kSide * wide>(), A + i * row, row, step, B,
                      stride, steps, C + i * width, width, more);
  }
  for (; i + 2 <= rows; i += 2) {
    pair_tile<2, wide>(std::make_integer_sequence<int, 2 * wide>(), A + i * row, row, step, B, stride,
                  steps, C + i * width, width, more);
  }
  for (; i < rows; ++i) {
    pair_tile<1, wide>(std::make_integer_sequence<int, wide>(), A + i * row, row, step, B, stride, steps,
                  C + i * width, width, more);
  }
}

// C (rows, columns) of width `width`; B (steps, columns) in pairs, of width `stride`, both filled up.
inline void product(const void* A, int64_t row, int64_t step, const uint32_t* B, int stride, int steps,
             int rows, int columns, float* C, int width, bool more = false) {
  const char* a = (const char*)A;
  for (int at = 0; at < columns; at += kStrip) {
    const int wide = std::min(4, (columns - at + 15) / 16);
    const auto run = wide == 4 ? row_strip<4> : wide == 3 ? row_strip<3> : wide == 2 ? row_strip<2> : row_strip<1>;
    run(a, row, step, B + at, stride, steps, rows, C + at, width, more);
  }
}

// x (rows, columns) -> (rows / 2, filled columns): pairs of neighbouring rows.
inline void pack_rows(const bfloat* x, int64_t stride, int rows, int columns, uint32_t* out) {
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
inline void pack_columns(const bfloat* x, int64_t stride, int rows, int columns, uint32_t* out) {
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

}  // namespace trimtab
