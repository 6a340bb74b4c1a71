// Element types at the border of the kernels. Bits only; conversions live with the vector code.
#pragma once
#include <cstdint>

namespace qwenkit {

enum class Dtype : int { f32 = 0, bf16 = 1, f16 = 2 };

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

constexpr int64_t size_of(Dtype t) { return t == Dtype::f32 ? 4 : 2; }
constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace qwenkit
