// Root-mean-square norm of rows, with the residual sum in the same pass. Rounds where the reference rounds:
// the sum to the type, the normalised value to the type, then the product with the weight.
#include "kernels.h"
#include "lanes.h"

#include <math.h>

namespace qwenkit::QWENKIT_LANES {
namespace {

template <class T>
void rows(const NormJob& job, int64_t first_row, int64_t last_row) {
    const int64_t n = job.columns, whole = n / lanes * lanes, left = n - whole;
    const T* weight = static_cast<const T*>(job.weight);
    for (int64_t row = first_row; row < last_row; row++) {
        const T* x = static_cast<const T*>(job.x) + row * n;
        T* y = static_cast<T*>(job.y) + row * n;
        V squares = zero(), more = zero();
        if (job.residual) {
            const T* residual = static_cast<const T*>(job.residual) + row * n;
            T* total = static_cast<T*>(job.sum) + row * n;
            for (int64_t i = 0; i < whole; i += lanes) {
                const V v = rounded(add(load(x + i), load(residual + i)), x);
                store(total + i, v);
                squares = fma(v, v, squares);
            }
            if (left) {
                const V v = rounded(add(load_part(x + whole, left), load_part(residual + whole, left)), x);
                store_part(total + whole, v, left);
                more = mul(v, v);
            }
            x = total;
        } else {
            for (int64_t i = 0; i < whole; i += lanes) {
                const V v = load(x + i);
                squares = fma(v, v, squares);
            }
            if (left) {
                const V v = load_part(x + whole, left);
                more = mul(v, v);
            }
        }
        const V factor = set(1.0f / sqrtf(sum(add(squares, more)) / float(n) + job.eps));
        for (int64_t i = 0; i < whole; i += lanes)
            store(y + i, mul(rounded(mul(load(x + i), factor), x), load(weight + i)));
        if (left)
            store_part(y + whole,
                       mul(rounded(mul(load_part(x + whole, left), factor), x), load_part(weight + whole, left)), left);
    }
}

}  // namespace

void norm(const NormJob& job, int64_t first, int64_t last) {
    if (job.type == Dtype::f32) rows<float>(job, first, last);
    else if (job.type == Dtype::bf16) rows<bf16>(job, first, last);
    else rows<f16>(job, first, last);
}

}  // namespace qwenkit::QWENKIT_LANES
