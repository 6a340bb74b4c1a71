// Rotary embedding: channels (j, j + r/2) of each head turned by the token's angles, in float32.
#include "kernels.h"
#include "lanes.h"

namespace qwenkit::QWENKIT_LANES {
namespace {

template <class T>
void tokens(const RopeJob& job, int64_t first_token, int64_t last_token) {
    const int64_t half = job.rotary / 2;
    for (int64_t t = first_token; t < last_token; t++) {
        const float* cos = job.cos + t % job.tokens_per_table * job.rotary;
        const float* sin = job.sin + t % job.tokens_per_table * job.rotary;
        for (int64_t h = 0; h < job.heads; h++) {
            const T* x = static_cast<const T*>(job.x) + t * job.x_token + h * job.head_dim;
            T* y = static_cast<T*>(job.y) + t * job.y_token + h * job.head_dim;
            for (int64_t j = 0; j < half; j += lanes) {
                const int64_t n = half - j < lanes ? half - j : lanes;
                const bool whole = n == lanes;
                auto get = [&](const auto* p) { return whole ? load(p) : load_part(p, n); };
                const V a = get(x + j), b = get(x + half + j);
                // Products rounded before the sum, as separate operations round them.
                const V first = add(mul(a, get(cos + j)), mul(sub(zero(), b), get(sin + j)));
                const V second = add(mul(b, get(cos + half + j)), mul(a, get(sin + half + j)));
                if (whole) {
                    store(y + j, first);
                    store(y + half + j, second);
                } else {
                    store_part(y + j, first, n);
                    store_part(y + half + j, second, n);
                }
            }
            if (x != y)
                for (int64_t j = job.rotary; j < job.head_dim; j++) y[j] = x[j];
        }
    }
}

}  // namespace

void rope(const RopeJob& job, int64_t first, int64_t last) {
    if (job.type == Dtype::f32) tokens<float>(job, first, last);
    else if (job.type == Dtype::bf16) tokens<bf16>(job, first, last);
    else tokens<f16>(job, first, last);
}

}  // namespace qwenkit::QWENKIT_LANES
