// What the kernels share.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define TRIMTAB_X86 1
#endif

#define TRIMTAB_EXPORT extern "C" __attribute__((visibility("default")))

using bfloat = uint16_t;  // the upper half of a float
