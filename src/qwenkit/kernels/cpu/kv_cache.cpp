// Writes new keys and values into their units: keys rotated, both rounded to 8 bits where asked.
#include "kernels.h"
#include "rotary.h"

namespace qwenkit::QWENKIT_LANES {
namespace {

// A cell of bf16 or of a code has its neighbour row beside it; see attention.h.
template <class C> constexpr bool paired = sizeof(C) == 1;
template <> constexpr bool paired<bf16> = true;

// Codes are kept around zero, 128 below the unsigned ones, so that a code is exact in bf16 and small.
template <class T>
void quantize(const T* x, int64_t n, KvFormat format, int8_t* codes, float* scale, float* minimum) {
    alignas(64) float floats[most_channels];
    for (int64_t i = 0; i < n; i += lanes)
        n - i < lanes ? store_part(floats + i, load_part(x + i, n - i), n - i) : store(floats + i, load(x + i));
    for (int64_t i = n; i < round_up(n, lanes); i++) floats[i] = floats[0];
    V low = load(floats), high = low, broken = zero();
    for (int64_t i = 0; i < n; i += lanes) {
        const V v = load(floats + i);
        low = min(low, v);
        high = max(high, v);
        broken = add(broken, sub(v, v));  // NaN from a NaN or an infinity
    }
    const float least = smallest(low), most = largest(high), poison = sum(broken);
    const bool affine = format == KvFormat::affine;
    const float size = affine ? (most - least) / 255 : (most > -least ? most : -least) / 127;
    const bool fits = size > 0 && poison == 0;
    for (int64_t i = 0; i < n; i += lanes) {
        V v = load(floats + i);
        if (affine) v = sub(v, set(least));
        v = fits ? nearest(div(v, set(size))) : zero();
        const I code = to_int(affine ? sub(clamp(v, 0, 255), set(128)) : clamp(v, -127, 127));
        alignas(16) int8_t some[lanes];
        store_bytes(some, code);
        for (int64_t j = 0; j < lanes && i + j < n; j++) codes[i + j] = some[j];
    }
    *scale = size + poison;
    if (affine) *minimum = least;
}

template <class C>
void put_key(char* side, const C* x, int64_t channels, int64_t token) {
    C* column = reinterpret_cast<C*>(side) + token / 16 * tile_cells;
    const int64_t n = token % 16;
    for (int64_t c = 0; c < channels; c++) {
        C* tile = column + c / 32 * 2 * tile_cells;
        const int64_t k = c % 32;
        tile[paired<C> ? (k / 2 * 16 + n) * 2 + k % 2 : k * 16 + n] = x[c];
    }
}

template <class C>
void put_value(char* side, const C* x, int64_t channels, int64_t token) {
    C* tile = reinterpret_cast<C*>(side);
    for (int64_t c = 0; c < channels; c++) {
        const int64_t n = c % 16;
        tile[c / 16 * tile_cells + (paired<C> ? (token / 2 * 16 + n) * 2 + token % 2 : token * 16 + n)] = x[c];
    }
}

template <class T>
void keep_as(const PagedJob& job, const KeepTask& task) {
    const PagedLayout& l = job.layout;
    const int64_t d = l.head_dim, token_step = (l.heads + 2 * l.kv_heads) * d;
    const int64_t start = job.starts[task.row] - job.offsets[task.row];
    T turned[most_channels];
    int8_t codes[most_channels];
    for (int64_t t = task.first; t < task.last; t++) {
        const int64_t position = start + t, slot = position % unit_tokens;
        const KvUnit unit = job.unit(task.row, task.head, position / unit_tokens);
        const T* key = static_cast<const T*>(job.qkv) + t * token_step + (l.heads + task.head) * d;
        const T* value = key + l.kv_heads * d;
        rotate(key, turned, job.cos + t * job.rotary, job.sin + t * job.rotary, job.rotary, d);
        if (l.format == KvFormat::plain) {
            put_key(unit.keys(), turned, d, slot);
            put_value(unit.values(), value, d, slot);
        } else {
            quantize(turned, d, l.format, codes, unit.key_scales() + slot, unit.key_minima() + slot);
            put_key(unit.keys(), codes, d, slot);
            quantize(value, d, l.format, codes, unit.value_scales() + slot, unit.value_minima() + slot);
            put_value(unit.values(), codes, d, slot);
        }
    }
}

}  // namespace

void keep(const PagedJob& job, const KeepTask& task) {
    if (job.layout.type == Dtype::f32) keep_as<float>(job, task);
    else if (job.layout.type == Dtype::bf16) keep_as<bf16>(job, task);
    else keep_as<f16>(job, task);
}

}  // namespace qwenkit::QWENKIT_LANES
