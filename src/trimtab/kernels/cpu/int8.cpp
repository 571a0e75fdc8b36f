// Products of floats with a frozen matrix that is kept as eight-bit codes, on AVX-512 VNNI.
//
//     y = s ⊙ (q Wqᵀ) + b + c (x F₁ᵀ) F₂,   q = round(x / (m a)),   Wq = round(W m / s)
//
// x is coded as it comes, in groups of 128 of its columns with a scale `a` of their own, after each
// column is divided by `m` (a balance between the column's own size and that of its weights: Xiao et
// al. 2023, arXiv:2211.10438). Wq has a scale `s` for each output. A product of 128 columns is exact
// in 32-bit integers; groups are added in fp32. The low-rank part is computed from x itself
// (`low_rank.h`).
//
// The backward pass is the same call: dx = dy W + (dy B) A, with the transposed codes.

#include "cpu.h"

#if defined(TRIMTAB_X86)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,fma")
#include <immintrin.h>
#include <omp.h>

#include <cmath>

#include "codes.h"
#include "low_rank.h"

using namespace trimtab;

namespace {

bool pairs_here() { return __builtin_cpu_supports("avx512bf16"); }

template <Dot dot, typename T>
void linear(const T* x, int rows, int columns, int outputs, const float* inverse,
            const int8_t* packed, const float* scales, const float* bias, const Factors& low,
            float* down, T* y) {
  const int step = block_rows(rows, kBlock / 2, omp_get_max_threads());  // what stays in L1
#pragma omp parallel for schedule(dynamic, 1)
  for (int begin = 0; begin < rows; begin += step) {
    Block& block = block_of_thread();
    const int count = std::min(step, rows - begin);
    block.code(x + size_t(begin) * columns, count, columns, inverse);
    float* own = low.rank ? down + size_t(begin) * low.rank : nullptr;
    if (low.rank) project<dot>(x + size_t(begin) * columns, count, low, own);
    const void* given = own;
    if (dot == Dot::bf16) given = in_pairs(own, count * low.rank, block.pairs);
    for (int panel = 0; panel < panels_of(outputs); ++panel) {
      block.times(packed + panel * panel_bytes(columns));
      for (int at = 0; at < kPanel && panel * kPanel + at < outputs; at += 16) {
        finish<dot>(block.sum + at, kPanel, count, scales, bias, given, low, panel * kPanel + at,
                    y + size_t(begin) * outputs);
      }
    }
  }
}

template <Dot dot, typename T>
void outer(const void* d, const T* x, int rows, int columns, int rank, float c, float* out) {
#pragma omp parallel for schedule(static)
  for (int from = 0; from < columns; from += 32) {
    outer_strip<dot>(d, x, rows, columns, rank, c, from, out);
  }
}

}  // namespace

TRIMTAB_EXPORT int trimtab_int8_here() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

TRIMTAB_EXPORT int64_t trimtab_int8_bytes(int outputs, int columns) {
  return panel_bytes(columns) * panels_of(outputs);
}

// W (outputs, columns) in fp32, m (columns,) or null -> its codes, and s (outputs,).
TRIMTAB_EXPORT void trimtab_int8_pack(const float* W, const float* balance, int outputs,
                                      int columns, int8_t* packed, float* scales) {
  const int64_t bytes = panel_bytes(columns);
#pragma omp parallel for schedule(static)
  for (int panel = 0; panel < panels_of(outputs); ++panel) {
    int8_t* part = packed + panel * bytes;
    std::memset(part, 0, bytes);
    for (int lane = 0; lane < kPanel && panel * kPanel + lane < outputs; ++lane) {
      const int n = panel * kPanel + lane;
      const float* row = W + size_t(n) * columns;
      auto value = [&](int k) { return balance ? row[k] * balance[k] : row[k]; };
      float largest = 0;
      for (int k = 0; k < columns; ++k) largest = std::max(largest, std::fabs(value(k)));
      scales[n] = largest / 127.0f;
      const float by = largest > 0 ? 127.0f / largest : 0.0f;
      int8_t* group = part;
      for (int g = 0; g < groups_of(columns); ++g) {
        int32_t sum = 0;
        for (int k = g * kGroup; k < std::min(columns, (g + 1) * kGroup); ++k) {
          const int code = int(std::lrint(value(k) * by)), inside = k - g * kGroup;
          group[kHeader + (inside / 4) * 4 * kPanel + lane * 4 + inside % 4] = int8_t(code);
          sum += code;
        }
        reinterpret_cast<int32_t*>(group)[lane] = -128 * sum;
        group += kHeader + depth_of(columns, g) * 4 * kPanel;
      }
    }
  }
}

// x (rows, columns) -> y (rows, outputs), and x F₁ᵀ (rows, rank), for ranks that eights divide.
TRIMTAB_EXPORT void trimtab_int8_linear(const void* x, int half, int rows, int columns, int outputs,
                                        const float* inverse, const int8_t* packed,
                                        const float* scales, const float* bias, int rank,
                                        const float* F1, const float* F2, float c, float* down,
                                        void* y) {
  if (half && pairs_here()) {
    const Factors low(Dot::bf16, rank, columns, outputs, F1, F2, c);
    linear<Dot::bf16>((const bfloat*)x, rows, columns, outputs, inverse, packed, scales, bias, low,
                      down, (bfloat*)y);
    return;
  }
  const Factors low(Dot::fp32, rank, columns, outputs, F1, F2, c);
  if (half) {
    linear<Dot::fp32>((const bfloat*)x, rows, columns, outputs, inverse, packed, scales, bias, low,
                      down, (bfloat*)y);
  } else {
    linear<Dot::fp32>((const float*)x, rows, columns, outputs, inverse, packed, scales, bias, low,
                      down, (float*)y);
  }
}

// out (rank, columns) = c dᵀ x, for d (rows, rank) and x (rows, columns).
TRIMTAB_EXPORT void trimtab_outer(const float* d, const void* x, int half, int rows, int columns,
                                  int rank, float c, float* out) {
  if (half && pairs_here()) {
    std::vector<uint32_t> pairs;
    row_pairs(d, rows, rank, pairs);
    outer<Dot::bf16>(pairs.data(), (const bfloat*)x, rows, columns, rank, c, out);
  } else if (half) {
    outer<Dot::fp32>(d, (const bfloat*)x, rows, columns, rank, c, out);
  } else {
    outer<Dot::fp32>(d, (const float*)x, rows, columns, rank, c, out);
  }
}

TRIMTAB_EXPORT int trimtab_routed_here() { return trimtab_int8_here() && pairs_here(); }

// y (examples, rows, outputs) += (x A_kᵀ) B_kᵀ with k = which[example], all in bf16: A (k, rank,
// columns) with even columns, B (k, rank / 2, outputs) as pairs of ranks, which eights divide.
TRIMTAB_EXPORT void trimtab_routed(const void* x, void* y, const int64_t* which, int examples,
                                   int rows, int columns, int outputs, int rank, const void* A,
                                   const uint32_t* B) {
#pragma omp parallel for schedule(dynamic, 1)
  for (int example = 0; example < examples; ++example) {
    const uint32_t* one = (const uint32_t*)A + which[example] * rank * (columns / 2);
    const Factors low(rank, columns, outputs, one, B + which[example] * (rank / 2) * outputs);
    Block& block = block_of_thread();
    for (int begin = 0; begin < rows; begin += kBlock) {
      const int count = std::min(kBlock, rows - begin);
      const size_t first_row = size_t(example) * rows + begin;
      std::vector<float>& down = block.down;
      down.resize(size_t(count) * rank);
      project<Dot::bf16>((const bfloat*)x + first_row * columns, count, low, down.data());
      const uint32_t* pairs = in_pairs(down.data(), count * rank, block.pairs);
      for (int column = 0; column < outputs; column += 16) {
        add_low((bfloat*)y + first_row * outputs, count, pairs, low, column);
      }
    }
  }
}

#pragma GCC pop_options
#else
TRIMTAB_EXPORT int trimtab_int8_here() { return 0; }
#endif
