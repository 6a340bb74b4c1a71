// A strip of outputs is copied beside itself, all its lines in the first-level cache, and worked through.
#include "rounding.h"

#include "kernels.h"
#include "lanes.h"

namespace qwenkit::QWENKIT_LANES {
namespace {

constexpr int64_t width = rounding_strip, parts = width / lanes;

void strip(const RoundingJob& job, int64_t start) {
    alignas(64) float held[rounding_lines * width];
    alignas(64) float scales[width], zeros[width];
    alignas(64) int32_t codes[width];
    const int64_t n = job.outputs, used = n - start < width ? n - start : width;
    for (int64_t i = 0; i < width; i++) {
        scales[i] = i < used ? job.scales[start + i] : 1;
        zeros[i] = i < used ? job.zeros[start + i] : 0;
    }
    for (int64_t line = job.first; line < job.count; line++) {
        float* to = held + line * width;
        __builtin_memcpy(to, job.lines + line * n + start, used * sizeof(float));
        for (int64_t i = used; i < width; i++) to[i] = 0;
    }
    for (int64_t line = job.first; line < job.last; line++) {
        const float* carry = job.carry + line * job.count;
        float* here = held + line * width;
        V errors[parts];
        for (int64_t p = 0; p < parts; p++) {
            const V w = load(here + p * lanes), scale = load(scales + p * lanes), zero = load(zeros + p * lanes);
            const V code = clamp(add(nearest(div(w, scale)), zero), 0, job.top);
            istore(codes + p * lanes, to_int(code));
            errors[p] = div(sub(w, mul(sub(code, zero), scale)), set(carry[line]));
            store(here + p * lanes, errors[p]);
        }
        for (int64_t i = 0; i < used; i++) job.codes[line * n + start + i] = uint8_t(codes[i]);
        for (int64_t after = line + 1; after < job.count; after++) {
            const V share = set(-carry[after]);
            float* to = held + after * width;
            for (int64_t p = 0; p < parts; p++) store(to + p * lanes, fma(share, errors[p], load(to + p * lanes)));
        }
    }
    for (int64_t line = job.first; line < job.count; line++) {
        float* to = (line < job.last ? job.errors : job.lines) + line * n + start;
        __builtin_memcpy(to, held + line * width, used * sizeof(float));
    }
}

struct Range {
    float low, high;
};

// As the original's quantizer, but never a zero of 0, which readers of the format take for 0 or for 16.
void step(Range range, const GridJob& job, float& scale, float& zero) {
    const float least = 5.9604645e-8f;  // the smallest float16
    auto half = [&](float x) {
        x = _cvtsh_ss(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        return x < least ? least : x;
    };
    scale = half((range.high - range.low) / float(job.top));
    if (job.symmetric) {
        zero = float((job.top + 1) / 2);
        return;
    }
    zero = __builtin_rintf(-range.low / scale);
    if (zero < 1) scale = half(range.high / float(job.top - 1)), zero = 1;
    if (zero > float(job.top)) zero = float(job.top);
}

void grid_strip(const GridJob& job, int64_t start) {
    const int64_t n = job.outputs, used = n - start < width ? n - start : width;
    alignas(64) float some[width] = {}, scales[width], zeros[width], costs[width], best[width];
    Range ranges[width] = {};
    auto line = [&](int64_t i) {
        const float* at = job.lines + i * n + start;
        if (used == width) return at;
        __builtin_memcpy(some, at, used * sizeof(float));
        return static_cast<const float*>(some);
    };
    V low[parts], high[parts];
    for (int64_t p = 0; p < parts; p++) low[p] = high[p] = zero();
    for (int64_t i = 0; i < job.count; i++) {
        const float* at = line(i);
        for (int64_t p = 0; p < parts; p++) {
            low[p] = min(low[p], load(at + p * lanes));
            high[p] = max(high[p], load(at + p * lanes));
        }
    }
    for (int64_t p = 0; p < parts; p++) store(scales + p * lanes, low[p]), store(zeros + p * lanes, high[p]);
    for (int64_t o = 0; o < width; o++) {
        Range r{scales[o], zeros[o]};
        if (job.symmetric) r.high = r.high > -r.low ? r.high : -r.low, r.low = -r.high;
        if (r.high == r.low) r = {-1, 1};
        ranges[o] = r;
        best[o] = __builtin_inff();
    }
    const float top = float(job.top);
    for (int clip = 0; clip < job.clips; clip++) {
        const float kept = float(1 - 0.05 * clip);
        for (int64_t o = 0; o < width; o++)
            step({ranges[o].low * kept, ranges[o].high * kept}, job, scales[o], zeros[o]);
        V cost[parts];
        for (int64_t p = 0; p < parts; p++) cost[p] = zero();
        for (int64_t i = 0; i < job.count; i++) {
            const float* at = line(i);
            const V share = set(job.share[i]);
            for (int64_t p = 0; p < parts; p++) {
                const V w = load(at + p * lanes), scale = load(scales + p * lanes), zero = load(zeros + p * lanes);
                const V code = clamp(add(nearest(div(w, scale)), zero), 0, top);
                const V lost = sub(w, mul(sub(code, zero), scale));
                cost[p] = fma(mul(lost, lost), share, cost[p]);
            }
        }
        for (int64_t p = 0; p < parts; p++) store(costs + p * lanes, cost[p]);
        for (int64_t o = 0; o < used; o++) {
            if (!(costs[o] < best[o]) && clip) continue;
            best[o] = costs[o];
            job.scales[start + o] = scales[o];
            job.zeros[start + o] = zeros[o];
        }
    }
}

}  // namespace

void grid(const GridJob& job, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) grid_strip(job, i * width);
}

void round(const RoundingJob& job, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) strip(job, i * width);
}

}  // namespace qwenkit::QWENKIT_LANES
