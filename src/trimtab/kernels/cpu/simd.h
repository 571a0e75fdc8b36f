// Sixteen numbers at a time, read from and written to bf16 or fp32. For files that have set their
// target: AVX-512 with VNNI; instructions for bf16 are used where `Dot::bf16` asks for them alone.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "cpu.h"

namespace trimtab {

inline __mmask16 first(int count) {
  return count >= 16 ? __mmask16(0xffff) : __mmask16((1u << std::max(count, 0)) - 1);
}

inline __m512 load16(const float* x, __mmask16 keep) { return _mm512_maskz_loadu_ps(keep, x); }
inline __m512 load16(const bfloat* x, __mmask16 keep) {
  const __m256i half = _mm256_maskz_loadu_epi16(keep, x);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline void store16(float* y, __mmask16 keep, __m512 v) { _mm512_mask_storeu_ps(y, keep, v); }

// Each number in bf16, to the nearest, ties to even, in the lower half of its lane.
inline __m512i halves16(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  return _mm512_srli_epi32(_mm512_add_epi32(bits, up), 16);
}
inline void store16(bfloat* y, __mmask16 keep, __m512 v) {
  _mm256_mask_storeu_epi16(y, keep, _mm512_cvtepi32_epi16(halves16(v)));
}

inline uint32_t half_of(float v) {  // its bf16, to the nearest
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline uint32_t pair(float low, float high) { return half_of(low) | half_of(high) << 16; }

// eˣ to about two units in the last place; 0 far below, ∞ far above, NaN of NaN.
inline __m512 exp16(__m512 x) {
  const __m512 log2e = _mm512_set1_ps(1.44269504f);
  x = _mm512_min_ps(_mm512_set1_ps(89.0f), x);  // of two, the second where one is NaN
  x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, log2e), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 720);
  for (float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  }
  return _mm512_scalef_ps(p, n);
}

// sum += x w, of four columns of eight bits each. gcc 12 copies what it adds upon to memory around
// the intrinsics.
inline void multiply(__m512i& sum, __m512i x, __m512i w) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
}
// sum += x w, of two columns of bf16 each.
inline void multiply(__m512& sum, __m512i x, __m512i w) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
}

}  // namespace trimtab
