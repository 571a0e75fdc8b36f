// What stands between the products of a block, in one pass forward and one backward, in bf16 with all
// arithmetic in fp32:
//
//     norm         y = w ⊙ n + b,   n = (x - μ) / σ;   dx = (g - ḡ - n · mean(g ⊙ n)) / σ,   g = w ⊙ dy
//                  with μ and ḡ the means of x and g, or nothing (root mean square: Zhang and Sennrich
//                  2019, arXiv:1910.07467)
//     activation   y = f(a) ⊙ b;   da = f'(a) ⊙ b ⊙ dy,   db = f(a) ⊙ dy;   b may be missing

#include "cpu.h"

#if defined(TRIMTAB_X86)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")
#include <immintrin.h>

#include <cmath>

#include "simd.h"

using namespace trimtab;

namespace {

struct Value {
  __m512 f, slope;
};

// Sixteen numbers, or those of them that are left at the end.
struct All {
  static __m512 load(const bfloat* x) { return wide(_mm256_loadu_si256((const __m256i*)x)); }
  static __m512 load(const float* x) { return _mm512_loadu_ps(x); }
  static void store(bfloat* y, __m512 v) {
    _mm256_storeu_si256((__m256i*)y, (__m256i)_mm512_cvtneps_pbh(v));
  }
  static __m512 kept(__m512 v) { return v; }
  static __m512 wide(__m256i half) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
};

struct Some {
  __mmask16 keep;
  template <typename T>
  __m512 load(const T* x) const { return load16(x, keep); }
  void store(bfloat* y, __m512 v) const { store16(y, keep, v); }
  __m512 kept(__m512 v) const { return _mm512_maskz_mov_ps(keep, v); }
};

template <typename Each>
inline void along(int64_t begin, int64_t end, Each each) {
  int64_t i = begin;
  for (; i + 16 <= end; i += 16) each(i, All());
  if (i < end) each(i, Some{first(int(end - i))});
}

inline __m512 constant(float c) { return _mm512_set1_ps(c); }

// 2ˣ and 1 / x to about 2⁻¹⁴, thirty times finer than what they end up as.
inline __m512 power(__m512 x) {
  x = _mm512_max_ps(constant(-150.0f), x);  // of two, the second where one is NaN
  const __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n);
  __m512 p = constant(0.00967f);
  for (float c : {0.05550f, 0.24022f, 0.69315f, 1.0f}) p = _mm512_fmadd_ps(p, r, constant(c));
  return _mm512_scalef_ps(p, n);
}
inline __m512 inverse_of(__m512 x) { return _mm512_rcp14_ps(x); }

constexpr float kLog2e = 1.44269504f;

// x σ(u), with u' = ∂u/∂x.
inline Value gated(__m512 x, __m512 u, __m512 slope_of_u) {
  const __m512 e = power(_mm512_mul_ps(u, constant(-kLog2e)));
  const __m512 s = inverse_of(_mm512_add_ps(constant(1), e));
  const __m512 f = _mm512_mul_ps(x, s);
  const __m512 more = _mm512_mul_ps(_mm512_fnmadd_ps(f, s, f), slope_of_u);  // x s (1 - s) u'
  return {f, _mm512_add_ps(s, more)};
}

// x², as far as it matters: beyond 36 σ(u) below is 0 or 1.
inline __m512 square_of(__m512 x) {
  return _mm512_min_ps(constant(36), _mm512_mul_ps(x, x));  // of two, the second where one is NaN
}

inline Value silu(__m512 x) { return gated(x, x, constant(1)); }

// ½ x (1 + tanh(½ u)) = x σ(u), u = √(8/π) (x + 0.044715 x³).
inline Value gelu_tanh(__m512 x) {
  const __m512 square = square_of(x), c = constant(1.5957691216f);
  const __m512 inner = _mm512_fmadd_ps(square, constant(0.044715f), constant(1));
  const __m512 slope = _mm512_fmadd_ps(square, constant(3 * 0.044715f), constant(1));
  return gated(x, _mm512_mul_ps(c, _mm512_mul_ps(x, inner)), _mm512_mul_ps(c, slope));
}

// x Φ(x), with Φ(x) = σ(x q(x²)). The fit is off by 7e-4 of the result at most, far out, and by 1e-4 at
// most in all; rounding to bf16 by 2e-3.
inline Value gelu(__m512 x) {
  constexpr float kQ[] = {1.59393400f, 7.47686202e-2f, -7.60162136e-4f,
                          -1.01790831e-5f, 6.99199245e-7f, -9.13185999e-9f};
  const __m512 s = square_of(x);
  __m512 q = constant(kQ[5]), slope = constant(11 * kQ[5]);  // ∂(x q)/∂x = Σ (2k + 1) q_k x²ᵏ
  for (int k = 4; k >= 0; --k) {
    q = _mm512_fmadd_ps(q, s, constant(kQ[k]));
    slope = _mm512_fmadd_ps(slope, s, constant((2 * k + 1) * kQ[k]));
  }
  return gated(x, _mm512_mul_ps(x, q), slope);
}

enum Kind { kSilu, kGelu, kGeluTanh };

template <int kind>
inline Value value(__m512 x) {
  if constexpr (kind == kSilu) return silu(x);
  if constexpr (kind == kGelu) return gelu(x);
  return gelu_tanh(x);
}

constexpr int64_t kPart = 16 * 1024;  // numbers that a thread takes at a time

template <typename Each>
void in_parts(int64_t count, Each each) {
#pragma omp parallel for schedule(static)
  for (int64_t begin = 0; begin < count; begin += kPart) {
    along(begin, std::min(count, begin + kPart), each);
  }
}

template <int kind>
void activation(const bfloat* a, const bfloat* b, int64_t count, bfloat* y) {
  in_parts(count, [=](int64_t i, auto at) {
    const __m512 f = value<kind>(at.load(a + i)).f;
    at.store(y + i, b ? _mm512_mul_ps(f, at.load(b + i)) : f);
  });
}

template <int kind>
void activation_backward(const bfloat* a, const bfloat* b, const bfloat* dy, int64_t count,
                         bfloat* da, bfloat* db) {
  in_parts(count, [=](int64_t i, auto at) {
    const Value v = value<kind>(at.load(a + i));
    const __m512 d = at.load(dy + i);
    const __m512 through = b ? _mm512_mul_ps(d, at.load(b + i)) : d;
    at.store(da + i, _mm512_mul_ps(v.slope, through));
    if (db) at.store(db + i, _mm512_mul_ps(v.f, d));
  });
}

inline float mean_of(__m512 sum, int columns) { return _mm512_reduce_add_ps(sum) / columns; }

void norm(const bfloat* x, const float* w, const float* b, int columns, float eps, bool centred,
          bfloat* y, float* mean, float* inverse) {
  __m512 sum = _mm512_setzero_ps();
  if (centred) {
    along(0, columns, [&](int64_t k, auto at) { sum = _mm512_add_ps(sum, at.load(x + k)); });
  }
  *mean = centred ? mean_of(sum, columns) : 0.0f;
  const __m512 middle = constant(*mean);
  __m512 squares = _mm512_setzero_ps();
  along(0, columns, [&](int64_t k, auto at) {
    const __m512 from = at.kept(_mm512_sub_ps(at.load(x + k), middle));
    squares = _mm512_fmadd_ps(from, from, squares);
  });
  *inverse = 1.0f / std::sqrt(mean_of(squares, columns) + eps);
  const __m512 by = constant(*inverse);
  along(0, columns, [&](int64_t k, auto at) {
    const __m512 n = _mm512_mul_ps(_mm512_sub_ps(at.load(x + k), middle), by);
    const __m512 offset = b ? at.load(b + k) : _mm512_setzero_ps();
    at.store(y + k, _mm512_fmadd_ps(n, at.load(w + k), offset));
  });
}

void norm_backward(const bfloat* x, const float* w, const bfloat* dy, int columns, bool centred,
                   float mean, float inverse, bfloat* dx) {
  const __m512 middle = constant(mean), by = constant(inverse);
  __m512 sum = _mm512_setzero_ps(), dot = _mm512_setzero_ps();
  auto normed = [=](int64_t k, auto at) {
    return _mm512_mul_ps(_mm512_sub_ps(at.load(x + k), middle), by);
  };
  auto slope = [=](int64_t k, auto at) {
    return _mm512_mul_ps(at.load(dy + k), at.load(w + k));
  };
  along(0, columns, [&](int64_t k, auto at) {
    const __m512 g = slope(k, at);
    sum = _mm512_add_ps(sum, g);
    dot = _mm512_fmadd_ps(g, normed(k, at), dot);
  });
  const __m512 level = constant(centred ? mean_of(sum, columns) : 0.0f);
  const __m512 tilt = constant(mean_of(dot, columns));
  along(0, columns, [&](int64_t k, auto at) {
    const __m512 left = _mm512_fnmadd_ps(normed(k, at), tilt, slope(k, at));
    at.store(dx + k, _mm512_mul_ps(_mm512_sub_ps(left, level), by));
  });
}

}  // namespace

TRIMTAB_EXPORT int trimtab_rowwise_here() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16");
}

// x (rows, columns), w (columns,), b (columns,) or null -> y, with a mean and 1 / σ for each row.
TRIMTAB_EXPORT void trimtab_norm(const void* x, const float* w, const float* b, int rows,
                                 int columns, float eps, int centred, void* y, float* mean,
                                 float* inverse) {
#pragma omp parallel for schedule(static)
  for (int i = 0; i < rows; ++i) {
    const size_t at = size_t(i) * columns;
    norm((const bfloat*)x + at, w, b, columns, eps, centred, (bfloat*)y + at, mean + i,
         inverse + i);
  }
}

TRIMTAB_EXPORT void trimtab_norm_backward(const void* x, const float* w, const void* dy, int rows,
                                          int columns, int centred, const float* mean,
                                          const float* inverse, void* dx) {
#pragma omp parallel for schedule(static)
  for (int i = 0; i < rows; ++i) {
    const size_t at = size_t(i) * columns;
    norm_backward((const bfloat*)x + at, w, (const bfloat*)dy + at, columns, centred, mean[i],
                  inverse[i], (bfloat*)dx + at);
  }
}

// a (count,), b (count,) or null -> y (count,).
TRIMTAB_EXPORT void trimtab_activation(int kind, const void* a, const void* b, int64_t count,
                                       void* y) {
  const auto of = kind == kSilu ? activation<kSilu>
                                : kind == kGelu ? activation<kGelu> : activation<kGeluTanh>;
  of((const bfloat*)a, (const bfloat*)b, count, (bfloat*)y);
}

TRIMTAB_EXPORT void trimtab_activation_backward(int kind, const void* a, const void* b,
                                                const void* dy, int64_t count, void* da, void* db) {
  const auto of = kind == kSilu ? activation_backward<kSilu>
                                : kind == kGelu ? activation_backward<kGelu>
                                                : activation_backward<kGeluTanh>;
  of((const bfloat*)a, (const bfloat*)b, (const bfloat*)dy, count, (bfloat*)da, (bfloat*)db);
}

#pragma GCC pop_options
#else
TRIMTAB_EXPORT int trimtab_rowwise_here() { return 0; }
#endif
