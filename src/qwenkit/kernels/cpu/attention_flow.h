// What every instruction set does alike: softmax by segments, and putting segments together.
#pragma once
#include "nibbles.h"

namespace qwenkit::QWENKIT_LANES {

constexpr float unseen = -1e30f;  // the score of a key that a query may not see; finite, so differences are
constexpr int64_t vectors = unit_tokens / lanes;

class Scratch {
  public:
    explicit Scratch(char* memory) : at_(memory) {}
    template <class T>
    T* take(int64_t count) {
        T* p = reinterpret_cast<T*>(at_);
        at_ += round_up(count * int64_t(sizeof(T)), 64);
        return p;
    }

  private:
    char* at_;
};

// Sums of a task's queries: outputs [count][channels], maxima of the exponents (of 2), sums of the weights,
// and what every channel still has to be raised by.
struct Part {
    float *outputs, *maxima, *sums, *offsets;

    Part(float* at, int64_t count, int64_t channels)
        : outputs(at),
          maxima(at + count * channels),
          sums(maxima + round_up(count, 16)),
          offsets(sums + round_up(count, 16)) {}
};

struct Queries {
    const PagedJob& job;
    const AttendTask& task;
    const uint32_t group = uint32_t(job.layout.group());  // divisions by 32 bits are quicker

    int64_t token(int64_t i) const { return job.offsets[task.row] + in_row(i) / group; }
    int64_t position(int64_t i) const { return job.starts[task.row] + in_row(i) / group; }
    int64_t head(int64_t i) const { return task.head * job.layout.group() + in_row(i) % group; }
    uint32_t in_row(int64_t i) const { return uint32_t(task.first) + uint32_t(i); }
    template <class T>
    const T* source(int64_t i) const {
        const PagedLayout& l = job.layout;
        return static_cast<const T*>(job.qkv) + (token(i) * (l.heads + 2 * l.kv_heads) + head(i)) * l.head_dim;
    }
    template <class T>
    T* result(int64_t i) const {
        return static_cast<T*>(job.out) + (token(i) * job.layout.heads + head(i)) * job.layout.head_dim;
    }
    // Rotated and scaled as its type rounds; the caller's channels past head_dim stay as they are.
    template <class T>
    void turn(int64_t i, T* turned) const {
        const PagedLayout& l = job.layout;
        const int64_t d = l.head_dim, t = token(i);
        rotate(source<T>(i), turned, job.cos + t * job.rotary, job.sin + t * job.rotary, job.rotary, d);
        if (!job.logn) return;
        const V factor = rounded(set(job.logn[t]), turned);
        for (int64_t c = 0; c < l.channels(); c += lanes) store(turned + c, mul(load(turned + c), factor));
    }
    // The same as float32 in whole tiles of channels, times the steps of keys of 8 bits.
    template <class T>
    void read(int64_t i, float* out) const {
        const PagedLayout& l = job.layout;
        const float* steps = l.codes() ? l.key_steps(task.head) : nullptr;
        T turned[most_channels];
        for (int64_t c = l.head_dim; c < l.channels(); c++) turned[c] = T{};
        turn(i, turned);
        for (int64_t c = 0; c < l.channels(); c += lanes)
            store(out + c, steps ? mul(load(turned + c), load(steps + c)) : load(turned + c));
    }
};

// The units of one segment that some query of a task sees.
struct Segment {
    int64_t number, begin;    // position of its first key
    int64_t first = 0, last;  // units of it
    const bool scaled, affine;
    const char *keys[segment_units], *values[segment_units];
    const float *key_scales[segment_units], *value_scales[segment_units];
    alignas(64) float key_bases[segment_tokens], value_bases[segment_tokens];  // what code 0 stands for
    alignas(64) float ends[4 * unit_tokens];

    // spare: of PagedLayout::spare_bytes.
    Segment(const Queries& q, int64_t number, char* spare)
        : number(number),
          begin(number * segment_tokens),
          scaled(q.job.layout.codes()),
          affine(q.job.layout.format == KvFormat::affine) {
        const int64_t end = q.position(q.task.count - 1) + 1;
        last = (end - begin + unit_tokens - 1) / unit_tokens;
        if (last > segment_units) last = segment_units;
        if (q.job.window) first = (q.position(0) + 1 - q.job.window - begin) / unit_tokens;
        if (first < 0) first = 0;
        for (int64_t u = first; u < last; u++) {
            const KvUnit unit = q.job.unit(q.task.row, q.task.head, begin / unit_tokens + u);
            const int64_t written = q.job.length(q.task.row) - begin - u * unit_tokens;
            const bool whole = written >= unit_tokens;
            if (q.job.layout.format == KvFormat::nibbles) {
                const int64_t side = q.job.layout.tile_bytes();
                char* tiles = spare + u * 2 * side;
                unpack(q.job, q.task, begin / unit_tokens + u, written, tiles);
                keys[u] = tiles;
                values[u] = tiles + side;
                continue;
            }
            keys[u] = unit.keys();
            values[u] = whole || scaled ? unit.values() : copy_written(unit, written, spare);
            if (!scaled) continue;
            const float* scales = unit.key_scales();
            if (!whole) {
                for (int64_t i = 0; i < (affine ? 4 : 2) * unit_tokens; i++)
                    ends[i] = i % unit_tokens < written ? scales[i] : 0;
                scales = ends;
            }
            key_scales[u] = scales;
            value_scales[u] = scales + unit_tokens;
            for (int64_t t = 0; affine && t < unit_tokens; t += lanes) {
                auto base = [&](const float* at) { return fma(load(at), set(128), load(at + 2 * unit_tokens)); };
                store(key_bases + u * unit_tokens + t, base(scales + t));
                store(value_bases + u * unit_tokens + t, base(scales + unit_tokens + t));
            }
        }
    }

  private:
    // Zeros in the slots of the last unit that the text has not reached: 0 times a stale NaN would be NaN.
    static const char* copy_written(const KvUnit& unit, int64_t written, char* copy) {
        const PagedLayout& l = *unit.layout;
        const bool paired = l.type == Dtype::bf16;
        const int64_t row = paired ? 64 : 16 * l.cell_bytes(), tile = tile_cells * l.cell_bytes();
        const int64_t rows = paired ? written / 2 : written;
        for (int64_t at = 0; at < l.side_bytes(); at += tile) {
            __builtin_memcpy(copy + at, unit.values() + at, size_t(rows * row));
            __builtin_memset(copy + at + rows * row, 0, size_t(tile - rows * row));
            if (!paired || written % 2 == 0) continue;
            for (int64_t i = rows * row; i < (rows + 1) * row; i += 4)
                __builtin_memcpy(copy + at + i, unit.values() + at + i, 2);
        }
        return copy;
    }
};

// Scores [unit][32 queries][32 keys] to weights 2^(score - maximum), unseen keys 0. emit(unit, query, weights)
// takes 32 weights, for 8-bit values multiplied by their scales. `scale`: from q k to exponents of 2.
template <class Emit>
inline void weigh(const Queries& q, const Segment& s, float* scores, const float* query_sums, float scale,
                  const Part& part, Emit&& emit) {
    for (int64_t i = 0; i < q.task.count; i++) {
        const int64_t newest = q.position(i) - s.begin;
        const int64_t oldest = q.job.window ? newest + 1 - q.job.window : 0;
        V top[vectors];
        for (V& t : top) t = set(unseen);
        for (int64_t u = s.first; u < s.last; u++) {
            float* row = scores + (u * most_queries + i) * unit_tokens;
            const int64_t key = u * unit_tokens;
            const bool partly = newest < key + unit_tokens - 1 || oldest > key;
            for (int64_t h = 0; h < vectors; h++) {
                V v = load(row + h * lanes);
                if (s.scaled) v = mul(v, load(s.key_scales[u] + h * lanes));
                if (s.affine) v = fma(set(query_sums[i]), load(s.key_bases + key + h * lanes), v);
                if (partly) v = between(v, set(unseen), oldest - key - h * lanes, newest - key - h * lanes);
                if (s.scaled || partly) store(row + h * lanes, v);
                top[h] = max(top[h], v);
            }
        }
        for (int64_t h = 1; h < vectors; h++) top[0] = max(top[0], top[h]);
        const float most = largest(top[0]);
        const bool none = most == unseen;
        part.maxima[i] = none ? unseen : most * scale;
        const V down = set(none ? 0 : -part.maxima[i]), factor = set(scale);
        V total[vectors], offset[vectors];
        for (int64_t h = 0; h < vectors; h++) total[h] = offset[h] = zero();
        for (int64_t u = s.first; u < s.last; u++) {
            const float* row = scores + (u * most_queries + i) * unit_tokens;
            V weights[vectors];
            for (int64_t h = 0; h < vectors; h++) {
                V p = power2(fma(load(row + h * lanes), factor, down));
                total[h] = add(total[h], p);
                if (s.affine) offset[h] = fma(p, load(s.value_bases + u * unit_tokens + h * lanes), offset[h]);
                if (s.scaled) p = mul(p, load(s.value_scales[u] + h * lanes));
                weights[h] = p;
            }
            emit(u, i, weights);
        }
        for (int64_t h = 1; h < vectors; h++) {
            total[0] = add(total[0], total[h]);
            offset[0] = add(offset[0], offset[h]);
        }
        part.sums[i] = sum(total[0]);
        part.offsets[i] = s.affine ? sum(offset[0]) : 0;
    }
}

// The outputs of a part from memory.
struct Outputs {
    const float* at;
    int64_t channels;
    V operator()(int64_t i, int64_t c) const { return load(at + i * channels + c); }
};

// Adds a segment's sums to the total. The first one arrives unchanged: its factor is 1, the other's 0.
// output(i, c): the segment's outputs of query i from channel c on.
template <class Output>
inline void fold(const Part& segment, const Part& total, int64_t count, int64_t channels, Output&& output) {
    alignas(64) float olds[lanes], mores[lanes];
    for (int64_t first = 0; first < count; first += lanes) {
        const V a = load(total.maxima + first), b = load(segment.maxima + first), most = max(a, b);
        const V older = power2(sub(a, most)), newer = power2(sub(b, most));
        store(olds, older);
        store(mores, newer);
        store(total.maxima + first, most);
        store(total.sums + first, fma(load(total.sums + first), older, mul(load(segment.sums + first), newer)));
        for (int64_t i = first; i < count && i < first + lanes; i++) {
            const V old = set(olds[i - first]), more = set(mores[i - first]), offset = set(segment.offsets[i]);
            float* out = total.outputs + i * channels;
            for (int64_t c = 0; c < channels; c += lanes)
                store(out + c, fma(load(out + c), old, mul(add(output(i, c), offset), more)));
        }
    }
}

// The same for the first segment, of which nothing was added before.
template <class Output>
inline void begin(const Part& segment, const Part& total, int64_t count, int64_t channels, Output&& output) {
    for (int64_t i = 0; i < count; i += lanes) {
        store(total.maxima + i, load(segment.maxima + i));
        store(total.sums + i, load(segment.sums + i));
    }
    for (int64_t i = 0; i < count; i++) {
        const V offset = set(segment.offsets[i]);
        float* out = total.outputs + i * channels;
        for (int64_t c = 0; c < channels; c += lanes) store(out + c, add(add(output(i, c), offset), zero()));  // no -0
    }
}

template <class Output>
inline void give(const Part& from, const Part& to, int64_t count, int64_t channels, Output&& output) {
    for (int64_t i = 0; i < count; i++) {
        for (int64_t c = 0; c < channels; c += lanes) store(to.outputs + i * channels + c, output(i, c));
        to.maxima[i] = from.maxima[i];
        to.sums[i] = from.sums[i];
        to.offsets[i] = from.offsets[i];
    }
}

inline void clear(const Part& total, int64_t count, int64_t channels) {
    for (int64_t i = 0; i < round_up(count, 16); i++) {
        total.maxima[i] = unseen;
        total.sums[i] = 0;
    }
    for (int64_t i = 0; i < count; i++) {
        for (int64_t c = 0; c < channels; c += lanes) store(total.outputs + i * channels + c, zero());
    }
}

template <class T>
inline void finish(const Queries& q, const Part& total) {
    const PagedLayout& l = q.job.layout;
    for (int64_t i = 0; i < q.task.count; i++) {
        T* out = q.result<T>(i);
        const float* in = total.outputs + i * l.channels();
        const V part = set(1 / total.sums[i]);
        for (int64_t c = 0; c < l.head_dim; c += lanes) {
            const int64_t left = l.head_dim - c;
            const V v = mul(load(in + c), part);
            left < lanes ? store_part(out + c, v, left) : store(out + c, v);
        }
    }
}

// The whole of one task. Products multiplies: scores(segment) keys, values(segment, outputs) values, in between
// being called with weights, as weigh says.
template <class T, class Products>
inline void run_task(const PagedJob& job, const AttendTask& task, char* memory) {
    const Queries q{job, task};
    const int64_t channels = job.layout.channels();
    Scratch scratch(memory);
    float* queries = scratch.take<float>(most_queries * channels);
    float* scores = scratch.take<float>(segment_units * most_queries * unit_tokens);
    // Tiles are stored whole: 32 rows.
    const Part total(scratch.take<float>(job.part_floats(most_queries)), most_queries, channels);
    const Part own(scratch.take<float>(job.part_floats(most_queries)), most_queries, channels);
    alignas(64) float query_sums[most_queries] = {};
    for (int64_t i = 0; i < task.count; i++) {
        q.read<T>(i, queries + i * channels);
        if (job.layout.format != KvFormat::affine) continue;
        V all = zero();
        for (int64_t c = 0; c < channels; c += lanes) all = add(all, load(queries + i * channels + c));
        query_sums[i] = sum(all);
    }
    char* spare = scratch.take<char>(job.layout.spare_bytes());
    Products products(q, queries, scores, scratch);
    const float scale = 1.44269504f / __builtin_sqrtf(float(job.layout.head_dim));
    if (!task.part) clear(total, task.count, channels);
    for (int64_t number = task.first_segment; number < task.last_segment; number++) {
        const Segment segment(q, number, spare);
        products.scores(segment);
        weigh(q, segment, scores, query_sums, scale, own, products);
        products.values(segment, own.outputs);
        float* part = task.part + (number - task.first_segment) * job.part_floats(task.count);
        const Outputs outputs{own.outputs, channels};
        if (task.part) give(own, Part(part, task.count, channels), task.count, channels, outputs);
        else fold(own, total, task.count, channels, outputs);
    }
    if (!task.part) finish<T>(q, total);
}

}  // namespace qwenkit::QWENKIT_LANES
