// SwiGLU's product: up * silu(gate). silu is rounded to the type before the product, as two operations do.
#include "kernels.h"
#include "lanes.h"

namespace qwenkit::QWENKIT_LANES {
namespace {

inline V silu(V x, const float*) { return div(x, add(set(1.0f), exp(sub(zero(), x)))); }

// For 16-bit types, far closer than they round: by a reciprocal, without a division. Where e^-x would overflow the
// factor is 2^-126; taking that and its error away leaves 0, as it should be however large -x is, and changes
// no other factor that counts.
template <class T> inline V silu(V x, const T*) {
    const V t = min(set(126), mul(x, set(-1.44269504f)));  // a NaN stays one: it is the second operand
    const V factor = sub(reciprocal(add(set(1.0f), power2(t))), set(0x1.0001p-126f));
    return mul(x, max(zero(), factor));
}

template <class T>
void rows(const GateJob& job, int64_t first_row, int64_t last_row) {
    const int64_t n = job.columns, whole = n / lanes * lanes, left = n - whole;
    for (int64_t row = first_row; row < last_row; row++) {
        const T* up = static_cast<const T*>(job.up) + row * job.up_row;
        const T* gate = static_cast<const T*>(job.gate) + row * job.gate_row;
        T* y = static_cast<T*>(job.y) + row * job.y_row;
        for (int64_t i = 0; i < whole; i += lanes)
            store(y + i, mul(load(up + i), rounded(silu(load(gate + i), up), up)));
        if (left)
            store_part(y + whole, mul(load_part(up + whole, left), rounded(silu(load_part(gate + whole, left), up), up)),
                       left);
    }
}

}  // namespace

void gate(const GateJob& job, int64_t first, int64_t last) {
    if (job.type == Dtype::f32) rows<float>(job, first, last);
    else if (job.type == Dtype::bf16) rows<bf16>(job, first, last);
    else rows<f16>(job, first, last);
}

}  // namespace qwenkit::QWENKIT_LANES
