// Keys and values of 4 bits: how a token is rounded into its unit, and how a unit becomes tiles again.
//
// 32 channels of a token share a scale and a minimum of bf16 and lie in 16 bytes, the first 16 channels in the low
// halves. Keys are kept as KeyForm (kernels/key_form.py) says: without their head's rotated center, in steps of their
// channel, mixed by a Hadamard matrix of 32. The center turns with the position, whose angles a cache keeps once for
// all its layers, in units of 1 / 32767.
#pragma once
#include "attention.h"
#include "rotary.h"

namespace qwenkit::QWENKIT_LANES {

inline bf16 to_nearest(float x) {
    uint32_t u;
    __builtin_memcpy(&u, &x, 4);
    if (x != x) return {0x7fc0};
    return {uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

// Where the group of a side, keys or values, that starts with a channel keeps its bytes, scales and minima.
struct NibbleGroup {
    uint8_t* codes;
    bf16 *scales, *minima;

    NibbleGroup(char* side, int64_t channels, int64_t c)
        : codes(reinterpret_cast<uint8_t*>(side) + c * 16),
          scales(reinterpret_cast<bf16*>(side + channels * 16) + c),
          minima(scales + channels) {}
};

// x: 32 channels; what a NaN or an infinity is among, becomes NaN.
inline void round_group(const float* x, uint8_t* codes, bf16* scale, bf16* minimum) {
    V low = load(x), high = low, broken = zero();
    for (int64_t i = 0; i < 32; i += lanes) {
        const V v = load(x + i);
        low = min(low, v);
        high = max(high, v);
        broken = add(broken, sub(v, v));
    }
    const float least = smallest(low), poison = sum(broken);
    *scale = to_nearest((largest(high) - least) / 15 + poison);
    *minimum = to_nearest(least);
    const float size = scalar(*scale);
    const V base = set(scalar(*minimum));
    alignas(64) float rounded[32] = {};
    for (int64_t i = 0; i < 32 && size > 0; i += lanes)
        store(rounded + i, clamp(nearest(div(sub(load(x + i), base), set(size))), 0, 15));
    for (int64_t k = 0; k < 16; k++) codes[k] = uint8_t(int(rounded[k]) | int(rounded[k + 16]) << 4);
}

inline void mix(float* x) {
    for (int64_t h = 1; h < 32; h *= 2)
        for (int64_t i = 0; i < 32; i += 2 * h)
            for (int64_t k = i; k < i + h; k++) {
                const float a = x[k], b = x[k + h];
                x[k] = a + b;
                x[k + h] = a - b;
            }
}
template <int H>
inline void mix_rows(V (&x)[32]) {
#pragma GCC unroll 32
    for (int k = 0; k < 32; k++) {
        if (k & H) continue;
        const V a = x[k], b = x[k + H];
        x[k] = add(a, b);
        x[k + H] = sub(a, b);
    }
}

template <class T>
void put_nibble_key(const PagedJob& job, int64_t head, int64_t token, const T* key, const KvUnit& unit, int64_t slot) {
    const PagedLayout& l = job.layout;
    const int64_t d = l.head_dim, channels = l.channels();
    const float *steps = l.key_steps(head), *center = l.key_center(head);
    alignas(64) float x[most_channels], turned[most_channels];
    for (int64_t c = 0; c < d; c += lanes)
        store(x + c, sub(d - c < lanes ? load_part(key + c, d - c) : load(key + c), load(center + c)));
    rotate<float>(x, turned, job.cos + token * job.rotary, job.sin + token * job.rotary, job.rotary, d);
    for (int64_t c = d; c < channels; c++) turned[c] = 0;
    for (int64_t c = 0; c < channels; c += 32) {
        for (int64_t i = 0; i < 32; i += lanes) store(turned + c + i, div(load(turned + c + i), load(steps + c + i)));
        mix(turned + c);
        const NibbleGroup to(unit.keys(), channels, c);
        uint8_t codes[16];
        round_group(turned + c, codes, to.scales + slot, to.minima + slot);
        for (int64_t k = 0; k < 16; k++) to.codes[slot / 16 * 256 + k * 16 + slot % 16] = codes[k];
    }
}
template <class T>
void put_nibble_value(const PagedLayout& l, const T* value, const KvUnit& unit, int64_t slot) {
    alignas(64) float x[32];
    for (int64_t c = 0; c < l.head_dim; c += 32) {
        for (int64_t i = 0; i < 32; i += lanes) {
            const int64_t left = l.head_dim - c - i;
            if (left > 0) store(x + i, left < lanes ? load_part(value + c + i, left) : load(value + c + i));
        }
        for (int64_t i = l.head_dim - c; i < 32; i++) x[i] = x[0];
        const NibbleGroup to(unit.values(), l.channels(), c);
        round_group(x, to.codes + slot * 16, to.scales + slot, to.minima + slot);
    }
}

// Rows c and c + 1 of a tile, columns from `at` on, in the layout of attention.h.
inline void put_rows(bf16* tiles, int64_t row, int64_t at, V even, V odd) {
    const I high = iand(nearest_bf16(odd), iset(int(0xffff0000)));
    istore(tiles + row * 16 + at * 2, ior(right<16>(nearest_bf16(even)), high));
}
template <class T>
inline void put_rows(T* tiles, int64_t row, int64_t at, V even, V odd) {
    store(tiles + row * 16 + at, even);
    store(tiles + (row + 1) * 16 + at, odd);
}

// What a channel of the center is for some tokens.
inline V center_of(const PagedJob& job, const float* center, const int16_t* angles, int64_t c, int64_t t) {
    const int64_t half = job.rotary / 2, j = c < half ? c : c - half;
    if (c >= job.rotary) return set(center[c]);
    auto part = [&](const int16_t* p, float by) { return mul(to_float(widen(p + t)), set(by * (1.0f / 32767))); };
    const int16_t* pair = angles + j * 2 * unit_tokens;
    return add(part(pair, center[c]), part(pair + unit_tokens, c < half ? -center[c + half] : center[j]));
}

template <class T>
void unpack_keys(const PagedJob& job, int64_t head, const KvUnit& unit, const int16_t* angles, T* tiles) {
    const PagedLayout& l = job.layout;
    const int64_t channels = l.channels();
    const float *steps = l.key_steps(head), *center = l.key_center(head);
    for (int64_t c = 0; c < channels; c += 32) {
        const NibbleGroup from(unit.keys(), channels, c);
        for (int64_t t = 0; t < unit_tokens; t += lanes) {
            const V scale = load(from.scales + t), low = load(from.minima + t);
            const uint8_t* codes = from.codes + t / 16 * 256 + t % 16;
            V x[32];
#pragma GCC unroll 16
            for (int k = 0; k < 16; k++) {
                const I both = widen(codes + k * 16);
                x[k] = fma(to_float(iand(both, iset(15))), scale, low);
                x[k + 16] = fma(to_float(right<4>(both)), scale, low);
            }
            mix_rows<1>(x);
            mix_rows<2>(x);
            mix_rows<4>(x);
            mix_rows<8>(x);
            mix_rows<16>(x);
            T* to = tiles + t / 16 * channels * 16;
            for (int k = 0; k < 32; k += 2) {
                auto key = [&](int64_t i) {
                    return fma(x[i], set(steps[c + i] * (1.0f / 32)), center_of(job, center, angles, c + i, t));
                };
                put_rows(to, c + k, t % 16, key(k), key(k + 1));
            }
        }
    }
}

// Slots from `written` on become zeros: 0 times a stale NaN would be NaN.
template <class T>
void unpack_values(const PagedLayout& l, const KvUnit& unit, int64_t written, T* tiles) {
    const int64_t channels = l.channels();
    for (int64_t c = 0; c < channels; c += 32) {
        const NibbleGroup from(unit.values(), channels, c);
        T* to = tiles + c * 32;
        for (int64_t t = 0; t < unit_tokens; t += 2)
            for (int64_t at = 0; at < 16; at += lanes) {
                V first[2] = {zero(), zero()}, second[2] = {zero(), zero()};
                for (int64_t i = 0; i < 2 && t + i < written; i++) {
                    const V scale = set(scalar(from.scales[t + i])), low = set(scalar(from.minima[t + i]));
                    const I both = widen(from.codes + (t + i) * 16 + at);
                    first[i] = fma(to_float(iand(both, iset(15))), scale, low);
                    second[i] = fma(to_float(right<4>(both)), scale, low);
                }
                put_rows(to, t, at, first[0], first[1]);
                put_rows(to + tile_cells, t, at, second[0], second[1]);
            }
    }
}

// A unit as tiles of the job's type: keys, then values.
inline void unpack(const PagedJob& job, const AttendTask& task, int64_t index, int64_t written, char* tiles) {
    const KvUnit unit = job.unit(task.row, task.head, index);
    const int16_t* angles = job.layout.angles + job.place(task.row, index) * job.layout.angle_count();
    auto as = [&](auto* to) {
        unpack_keys(job, task.head, unit, angles, to);
        unpack_values(job.layout, unit, written, to + job.layout.channels() * unit_tokens);
    };
    if (job.layout.type == Dtype::f32) as(reinterpret_cast<float*>(tiles));
    else if (job.layout.type == Dtype::bf16) as(reinterpret_cast<bf16*>(tiles));
    else as(reinterpret_cast<f16*>(tiles));
}

}  // namespace qwenkit::QWENKIT_LANES
