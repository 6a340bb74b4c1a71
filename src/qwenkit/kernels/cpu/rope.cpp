// Rotary embedding of many tokens.
#include "rotary.h"

#include "kernels.h"

namespace qwenkit::QWENKIT_LANES {
namespace {

template <class T>
void tokens(const RopeJob& job, int64_t first_token, int64_t last_token) {
    for (int64_t t = first_token; t < last_token; t++) {
        const int64_t table = t % job.tokens_per_table * job.rotary;
        for (int64_t h = 0; h < job.heads; h++)
            rotate(static_cast<const T*>(job.x) + t * job.x_token + h * job.head_dim,
                   static_cast<T*>(job.y) + t * job.y_token + h * job.head_dim, job.cos + table, job.sin + table,
                   job.rotary, job.head_dim);
    }
}

}  // namespace

void rope(const RopeJob& job, int64_t first, int64_t last) {
    if (job.type == Dtype::f32) tokens<float>(job, first, last);
    else if (job.type == Dtype::bf16) tokens<bf16>(job, first, last);
    else tokens<f16>(job, first, last);
}

}  // namespace qwenkit::QWENKIT_LANES
