// The low-rank part c (x F₁ᵀ) F₂ of a product, from x itself: sums in fp32, and numbers too, but where
// x is in bf16 and the processor multiplies pairs of those: there the factors are rounded as x is.
#pragma once

#include <utility>
#include <vector>

#include "simd.h"

namespace trimtab {

enum class Dot { fp32, bf16 };
constexpr int kRanks = 8;  // taken together

inline int upto(int size, int step) { return (size + step - 1) / step; }

// F₁ (rank, columns) and c F₂ (rank, outputs), the ranks filled up with zeros to eights: as floats, or
// as pairs, of F₁'s neighbouring columns and of F₂'s neighbouring ranks.
struct Factors {
  int rank = 0, columns = 0, outputs = 0;
  const uint32_t* one = nullptr;
  const uint32_t* two = nullptr;
  std::vector<uint32_t> own_one, own_two;

  Factors(int rank, int columns, int outputs, const uint32_t* one, const uint32_t* two)
      : rank(rank), columns(columns), outputs(outputs), one(one), two(two) {}

  Factors(Dot dot, int given, int columns, int outputs, const float* F1, const float* F2, float c)
      : rank(upto(given, kRanks) * kRanks), columns(columns), outputs(outputs) {
    if (dot == Dot::fp32) {
      take_floats(given, F1, F2, c);
    } else {
      take_pairs(given, F1, F2, c);
    }
    one = own_one.data(), two = own_two.data();
  }

  int width(Dot dot) const { return dot == Dot::bf16 ? (columns + 1) / 2 : columns; }

 private:
  void take_floats(int given, const float* F1, const float* F2, float c) {
    own_one.assign(size_t(rank) * columns, 0);
    own_two.assign(size_t(rank) * outputs, 0);
    if (given) std::memcpy(own_one.data(), F1, sizeof(float) * given * columns);
    for (size_t i = 0; i < size_t(given) * outputs; ++i) {
      const float scaled = c * F2[i];
      std::memcpy(&own_two[i], &scaled, 4);
    }
  }

  void take_pairs(int given, const float* F1, const float* F2, float c) {
    const int half = (columns + 1) / 2;
    own_one.assign(size_t(rank) * half, 0);
    for (int r = 0; r < given; ++r) {
      const float* row = F1 + size_t(r) * columns;
      uint32_t* to = own_one.data() + size_t(r) * half;
      for (int k = 0; k < columns / 2; ++k) to[k] = pair(row[2 * k], row[2 * k + 1]);
      if (columns % 2) to[half - 1] = pair(row[columns - 1], 0);
    }
    own_two.assign(size_t(rank / 2) * outputs, 0);
    for (int r = 0; r < given; r += 2) {
      const float* row = F2 + size_t(r) * outputs;
      const float* next = r + 1 < given ? row + outputs : nullptr;
      uint32_t* to = own_two.data() + size_t(r / 2) * outputs;
      for (int n = 0; n < outputs; ++n) to[n] = pair(c * row[n], next ? c * next[n] : 0);
    }
  }
};

// Numbers as pairs of neighbours.
inline const uint32_t* in_pairs(const float* x, int count, std::vector<uint32_t>& out) {
  out.resize(count / 2);
  for (int i = 0; i < count / 2; ++i) out[i] = pair(x[2 * i], x[2 * i + 1]);
  return out.data();
}

// Those of neighbouring rows: (rows / 2, rank).
inline void row_pairs(const float* d, int rows, int rank, std::vector<uint32_t>& out) {
  out.resize(size_t(rows + 1) / 2 * rank);
  for (int i = 0; i < rows; i += 2) {
    const float* one = d + size_t(i) * rank;
    for (int q = 0; q < rank; ++q) {
      out[size_t(i / 2) * rank + q] = pair(one[q], i + 1 < rows ? one[rank + q] : 0);
    }
  }
}

// Eight ranks at once: the compiler keeps an array in registers only where every index is a constant
// from the start, hence the folds.
using Eight = std::integer_sequence<int, 0, 1, 2, 3, 4, 5, 6, 7>;

inline void add_product(__m512& sum, __m512i x, __m512i w) { multiply(sum, x, w); }
inline void add_product(__m512& sum, __m512 x, __m512 w) { sum = _mm512_fmadd_ps(x, w, sum); }

// a += u Fᵀ and b += v Fᵀ for one register of columns, F's ranks as `load` gives them.
template <typename V, typename Load, int... q>
inline __attribute__((always_inline)) void project_step(__m512 (&a)[8], __m512 (&b)[8], V u, V v,
                                                        Load load, std::integer_sequence<int, q...>) {
  ((add_product(a[q], u, load(q)), add_product(b[q], v, load(q))), ...);
}

template <int... q>
inline void give_sums(const __m512 (&a)[8], float* to, std::integer_sequence<int, q...>) {
  ((to[q] = _mm512_reduce_add_ps(a[q])), ...);
}

// down (rows, rank) = x F₁ᵀ, two rows by eight ranks at a time.
template <Dot dot, typename T>
void project(const T* x, int rows, const Factors& f, float* down) {
  for (int i = 0; i < rows; i += 2) {
    const T* one = x + size_t(i) * f.columns;
    const T* two = i + 1 < rows ? one + f.columns : one;
    for (int r = 0; r < f.rank; r += kRanks) {
      __m512 a[kRanks] = {}, b[kRanks] = {};
      const int step = f.width(dot);
      if constexpr (dot == Dot::bf16) {
        for (int k = 0; k < f.columns; k += 32) {
          const int left = f.columns - k;
          const __mmask32 keep = left >= 32 ? __mmask32(~0u) : __mmask32((1u << left) - 1);
          const __mmask16 pairs = first((left + 1) / 2);
          const uint32_t* at = f.one + size_t(r) * step + k / 2;
          project_step(a, b, _mm512_maskz_loadu_epi16(keep, one + k),
                       _mm512_maskz_loadu_epi16(keep, two + k),
                       [=](int q) { return _mm512_maskz_loadu_epi32(pairs, at + q * step); },
                       Eight());
        }
      } else {
        for (int k = 0; k < f.columns; k += 16) {
          const __mmask16 keep = first(f.columns - k);
          const float* at = (const float*)f.one + size_t(r) * step + k;
          project_step(a, b, load16(one + k, keep), load16(two + k, keep),
                       [=](int q) { return _mm512_maskz_loadu_ps(keep, at + q * step); }, Eight());
        }
      }
      give_sums(a, down + size_t(i) * f.rank + r, Eight());
      if (i + 1 < rows) give_sums(b, down + size_t(i + 1) * f.rank + r, Eight());
    }
  }
}

template <Dot dot>
inline void raise_step(__m512& v, uint32_t d, __m512i w) {
  if constexpr (dot == Dot::bf16) {
    multiply(v, _mm512_set1_epi32(d), w);
  } else {
    v = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_set1_epi32(d)), _mm512_castsi512_ps(w), v);
  }
}

// v + d F₂, as two sums that do not wait for one another.
template <Dot dot, int terms, int... q>
inline __attribute__((always_inline)) __m512 raised(__m512 v, const uint32_t* d,
                                                    const __m512i (&w)[terms],
                                                    std::integer_sequence<int, q...>) {
  __m512 sums[2] = {v, _mm512_setzero_ps()};
  (raise_step<dot>(sums[q % 2], d[q], w[q]), ...);
  return _mm512_add_ps(sums[0], sums[1]);
}

// y = sum ⊙ scale + offset + down F₂ for 16 of the outputs, from `column`; `sum` has `stride` in a
// row. `down` (rows, rank) is in floats, or in pairs.
template <Dot dot, typename T>
void finish(float* sum, int stride, int rows, const float* scale, const float* offset,
            const void* down, const Factors& f, int column, T* y) {
  const __mmask16 keep = first(f.outputs - column);
  const __m512 by = _mm512_maskz_loadu_ps(keep, scale + column);
  const __m512 add = offset ? _mm512_maskz_loadu_ps(keep, offset + column) : _mm512_setzero_ps();
  constexpr int terms = dot == Dot::bf16 ? kRanks / 2 : kRanks;
  for (int r = 0; r == 0 || r < f.rank; r += kRanks) {
    __m512i w[terms] = {};
    const uint32_t* from = f.two + size_t(r / (kRanks / terms)) * f.outputs + column;
    for (int q = 0; q < terms && f.rank; ++q) {
      w[q] = _mm512_maskz_loadu_epi32(keep, from + size_t(q) * f.outputs);
    }
    const bool last = r + kRanks >= f.rank;
    for (int i = 0; i < rows; ++i) {
      __m512 v = _mm512_loadu_ps(sum + i * stride);
      if (r == 0) v = _mm512_fmadd_ps(v, by, add);
      if (f.rank) {
        const size_t at = (size_t(i) * f.rank + r) / (kRanks / terms);
        v = raised<dot>(v, (const uint32_t*)down + at, w, std::make_integer_sequence<int, terms>());
      }
      if (last) {
        store16(y + size_t(i) * f.outputs + column, keep, v);
      } else {
        _mm512_storeu_ps(sum + i * stride, v);
      }
    }
  }
}

// y += down F₂ for 16 of the outputs, from `column`; `down` (rows, rank) in pairs.
inline void add_low(bfloat* y, int rows, const uint32_t* down, const Factors& f, int column) {
  const __mmask16 keep = first(f.outputs - column);
  for (int r = 0; r < f.rank; r += kRanks) {
    __m512i w[kRanks / 2] = {};
    const uint32_t* from = f.two + size_t(r / 2) * f.outputs + column;
    for (int q = 0; q < kRanks / 2; ++q) {
      w[q] = _mm512_maskz_loadu_epi32(keep, from + size_t(q) * f.outputs);
    }
    for (int i = 0; i < rows; ++i) {
      bfloat* to = y + size_t(i) * f.outputs + column;
      const uint32_t* d = down + (size_t(i) * f.rank + r) / 2;
      store16(to, keep, raised<Dot::bf16>(load16(to, keep), d, w,
                                          std::make_integer_sequence<int, kRanks / 2>()));
    }
  }
}

inline void in_order(__m512& a, __m512& b) {  // what unpacking has mixed, four at a time
  const __m512i low = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  const __m512 u = a, v = b;
  a = _mm512_permutex2var_ps(u, low, v);
  b = _mm512_permutex2var_ps(u, high, v);
}

template <int... q>
inline void put_in_order(__m512 (&a)[8], __m512 (&b)[8], std::integer_sequence<int, q...>) {
  (in_order(a[q], b[q]), ...);
}

template <int... q>
inline void give_columns(const __m512 (&a)[8], float* to, int stride, __mmask16 keep, float c,
                         std::integer_sequence<int, q...>) {
  (_mm512_mask_storeu_ps(to + q * stride, keep, _mm512_mul_ps(a[q], _mm512_set1_ps(c))), ...);
}

// Columns `from` … `from` + 32 of out (rank, columns) = c dᵀ x, d (rows, rank): a register for each
// rank and 16 columns. With pairs of bf16, d as `row_pairs` makes it.
template <Dot dot, typename T>
void outer_strip(const void* d, const T* x, int rows, int columns, int rank, float c, int from,
                 float* out) {
  const __mmask16 near = first(columns - from), far = first(columns - from - 16);
  const __mmask32 keep = __mmask32(near) | __mmask32(far) << 16;
  for (int r = 0; r < rank; r += kRanks) {
    __m512 a[kRanks] = {}, b[kRanks] = {};
    if constexpr (dot == Dot::bf16) {
      for (int i = 0; i < rows; i += 2) {
        const T* one = x + size_t(i) * columns + from;
        const T* two = i + 1 < rows ? one + columns : one;  // beside it a zero
        const __m512i upper = _mm512_maskz_loadu_epi16(keep, one);
        const __m512i lower = _mm512_maskz_loadu_epi16(keep, two);
        const uint32_t* f = (const uint32_t*)d + size_t(i / 2) * rank + r;
        project_step(a, b, _mm512_unpacklo_epi16(upper, lower),  // columns 0 to 3 of each 8
                     _mm512_unpackhi_epi16(upper, lower),        // the other four
                     [=](int q) { return _mm512_set1_epi32(f[q]); }, Eight());
      }
      put_in_order(a, b, Eight());
    } else {
      for (int i = 0; i < rows; ++i) {
        const T* one = x + size_t(i) * columns + from;
        const float* f = (const float*)d + size_t(i) * rank + r;
        project_step(a, b, load16(one, near), load16(one + 16, far),
                     [=](int q) { return _mm512_set1_ps(f[q]); }, Eight());
      }
    }
    float* to = out + size_t(r) * columns + from;
    give_columns(a, to, columns, near, c, Eight());
    give_columns(b, to + 16, columns, far, c, Eight());
  }
}

}  // namespace trimtab
