#include "linear.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "cpu_features.h"
#include "elementwise.h"
#include "kernels.h"
#include "machine.h"
#include "thread_pool.h"

namespace qwenkit {
namespace {

// Rows of x from which tiles beat vectors, measured on a Sapphire Rapids core (bench/kernels.py).
constexpr int64_t tiles_from_int8 = 6;
constexpr int64_t tiles_from_bf16 = 1;
constexpr int64_t step_bytes = 96 * 1024;       // of weights a thread takes at a time
constexpr int64_t activation_bytes = 1 << 20;   // of x kept in L2 while the weights pass
constexpr int64_t cached_bytes = 1 << 18;       // a larger y is written past the caches
constexpr int64_t gated_from = 64;              // rows of x whose panels of gate and up are multiplied in turn

// Scratch of the calling thread, kept between calls.
class Workspace {
  public:
    static Workspace& mine() {
        static thread_local Workspace w;
        return w;
    }
    void reserve(int64_t bytes) {
        used_ = 0;
        if (bytes <= size_) return;
        memory_.reset();
        size_ = 0;
        memory_ = std::make_unique<Stream>(round_up(bytes, 1 << 21));
        size_ = round_up(bytes, 1 << 21);
    }
    template <class T>
    T* take(int64_t count) {
        T* p = reinterpret_cast<T*>(static_cast<char*>(memory_->data) + used_);
        used_ += room<T>(count);
        return p;
    }
    template <class T>
    static int64_t room(int64_t count) { return round_up(count * int64_t(sizeof(T)), 64) + 64; }

  private:
    std::unique_ptr<Stream> memory_;
    int64_t size_ = 0, used_ = 0;
};

int64_t grain(int64_t count, int64_t bytes_each) {
    const int64_t by_size = std::max<int64_t>(1, step_bytes / std::max<int64_t>(1, bytes_each));
    return std::max<int64_t>(1, std::min(by_size, count / (4 * ThreadPool::threads())));
}

// Few rows are prepared on the spot: waking others costs more.
template <class Body>
void prepare(ThreadPool& pool, int64_t rows, int64_t columns, Body&& body) {
    if (rows * columns < 32 * 1024) body(0, rows);
    else pool.loop(rows, 4, body);
}

using Multiply = void (*)(const AffineJob&, int64_t first, int64_t last);

Multiply tile_kernel(const AffineLayout& w, bool exact) {
    return w.inner ? amx::nested_int8 : exact ? amx::affine_exact : amx::affine_int8;
}

Multiply row_kernel(const AffineLayout& w, bool exact) {
    const Kernels& k = active_kernels();
    return w.inner ? k.nested_int8 : exact ? k.affine_exact : k.affine_int8;
}

bool affine_tiles(int64_t count, bool exact, Dtype x) {
    if (active_isa() != Isa::amx) return false;
    return exact ? x != Dtype::f32 : count >= tiles_from_int8;
}

// Rows of x a pass over the weights takes: as many as fit, in passes of equal size.
int64_t rows_once(int64_t count, int64_t row_bytes) {
    const int64_t most = std::clamp<int64_t>(activation_bytes / row_bytes / 32 * 32, 128, amx::most_count);
    const int64_t passes = std::max<int64_t>(1, (count + most - 1) / most);
    return std::max<int64_t>(32, round_up((count + passes - 1) / passes, 32));
}

// x of `job` as the kernels want it, in the thread's scratch memory.
void prepare_x(AffineJob& job, bool exact, bool tiles) {
    const Kernels& k = active_kernels();
    Workspace& memory = Workspace::mine();
    const AffineLayout& w = job.layout;
    if (w.inner && exact) throw std::invalid_argument("Nested codes are multiplied by rounded inputs only.");
    const int64_t rows = tiles ? round_up(job.count, 32) : job.count;
    const int64_t cells = rows * w.padded_columns(), sums = rows * w.sums(), slabs = rows * w.slabs();
    job.interleave = tiles ? 32 : 1;
    memory.reserve(Workspace::room<float>(cells) + 2 * Workspace::room<float>(sums) + Workspace::room<float>(slabs));
    job.scales = memory.take<float>(slabs);
    job.offsets = memory.take<float>(sums);
    job.sums = memory.take<int32_t>(sums);
    if (!exact) job.codes = memory.take<int8_t>(cells);
    else if (tiles) job.halves = memory.take<uint16_t>(cells);
    else job.floats = memory.take<float>(cells);
    if (w.inner && tiles && w.zeros == Zeros::minima) job.halves = memory.take<uint16_t>(32 * slabs);
    const auto fill = !exact ? k.quantize : tiles ? k.tile : k.widen;
    // A batch that fits one tile leaves the panel's second tile alone; what no row fills is zero.
    const int64_t filled = !tiles ? job.count : job.count <= 16 ? 16 : rows;
    prepare(ThreadPool::shared(), filled, w.padded_columns(), [&](int64_t a, int64_t b) { fill(job, a, b); });
}

void multiply_x(const AffineJob& job, bool exact, bool tiles) {
    ThreadPool& pool = ThreadPool::shared();
    const AffineLayout& w = job.layout;
    if (tiles) {
        const Multiply run = tile_kernel(w, exact);
        const int64_t panels = (w.blocks + 1) / 2;
        pool.loop(panels, grain(panels, 2 * w.block_bytes * std::max<int64_t>(1, job.count / 32)),
                  [&](int64_t a, int64_t b) { run(job, a, b); });
    } else {
        const Multiply run = row_kernel(w, exact);
        // A multiple of the blocks that one row reads side by side.
        pool.loop(w.blocks, round_up(grain(w.blocks, w.block_bytes * std::max<int64_t>(1, job.count / 8)), 4),
                  [&](int64_t a, int64_t b) { run(job, a, b); });
    }
}

// Panel by panel: 32 outputs of both products, then what they make together.
void multiply_gated(const AffineJob& up, bool exact, const AffineTarget& gate) {
    const Multiply run_up = tile_kernel(up.layout, exact), run_gate = tile_kernel(gate.layout, exact);
    const auto meet = active_kernels().gate;
    const int64_t rows = up.layout.rows;
    ThreadPool::shared().loop((up.layout.blocks + 1) / 2, 1, [&](int64_t first, int64_t last) {
        alignas(64) static thread_local float sides[2][amx::most_count * 32];
        for (int64_t panel = first; panel < last; panel++) {
            AffineJob job = up;
            job.y_row = 32;
            job.y_first = panel * 32;
            job.y = sides[0];
            run_up(job, panel, panel + 1);
            job.layout = gate.layout;
            job.packed = gate.packed;
            job.bias = gate.bias;
            job.y = sides[1];
            run_gate(job, panel, panel + 1);
            char* y = static_cast<char*>(up.y) + panel * 32 * size_of(up.y_type);
            meet(GateJob{sides[0], sides[1], y, std::min<int64_t>(32, rows - panel * 32), 32, 32, rows, up.y_type}, 0,
                 up.count);
        }
    });
}

// Calls `part` with as many rows of x at a time, prepared, as stay in the caches, and the first of them.
template <class Part>
void in_passes(AffineJob& job, bool exact, bool tiles, Part&& part) {
    const int64_t row_bytes = job.layout.padded_columns() * (!exact ? 1 : tiles ? 2 : 4);
    const int64_t count = job.count, most = rows_once(count, row_bytes);
    const auto* x = static_cast<const char*>(job.x);
    auto* y = static_cast<char*>(job.y);
    job.y_row = job.layout.rows;
    for (int64_t m = 0; m < count; m += most) {
        job.count = std::min(most, count - m);
        job.x = x + m * job.layout.columns * size_of(job.x_type);
        job.y = y + m * job.layout.rows * size_of(job.y_type);
        prepare_x(job, exact, tiles);
        part(job, m);
    }
}

}  // namespace

const Kernels& active_kernels() {
    switch (active_isa()) {
        case Isa::avx2: return avx2::kernels;
        case Isa::avx512:
        case Isa::amx: return avx512::kernels;
        default: throw std::runtime_error("The native kernels are switched off (instruction set 'reference').");
    }
}

void run_affine(AffineJob job, bool exact) {
    const bool tiles = affine_tiles(job.count, exact, job.x_type);
    job.past_cache = job.count * job.layout.rows * size_of(job.y_type) > cached_bytes;
    in_passes(job, exact, tiles, [&](const AffineJob& part, int64_t) { multiply_x(part, exact, tiles); });
}

void run_gated(AffineJob job, bool exact, const AffineTarget& gate) {
    const bool tiles = affine_tiles(job.count, exact, job.x_type), meet = tiles && job.count >= gated_from;
    const int64_t rows = job.layout.rows, size = size_of(job.y_type);
    job.past_cache = !meet && job.count * rows * size > cached_bytes;
    in_passes(job, exact, tiles, [&](const AffineJob& up, int64_t m) {
        if (meet) return multiply_gated(up, exact, gate);
        AffineJob other = up;
        other.layout = gate.layout;
        other.packed = gate.packed;
        other.bias = gate.bias;
        other.y = static_cast<char*>(gate.y) + m * rows * size;
        multiply_x(up, exact, tiles);
        multiply_x(other, exact, tiles);
        run_rows(GateJob{up.y, other.y, up.y, rows, rows, rows, rows, job.y_type}, active_kernels().gate, up.count, rows);
    });
}

void run_bf16(Bf16Job job) {
    const Kernels& k = active_kernels();
    ThreadPool& pool = ThreadPool::shared();
    Workspace& memory = Workspace::mine();
    const bool tiles = active_isa() == Isa::amx && job.count >= tiles_from_bf16;
    const int64_t padded = job.padded_columns(), blocks = (job.rows + 15) / 16, count = job.count;
    const int64_t most = rows_once(count, padded * 2);
    job.past_cache = count * job.rows * size_of(job.y_type) > cached_bytes;
    const auto* x = static_cast<const char*>(job.x);
    auto* y = static_cast<char*>(job.y);
    for (int64_t m = 0; m < count; m += most) {
        job.count = std::min(most, count - m);
        job.x = x + m * job.columns * size_of(job.x_type);
        job.y = y + m * job.rows * size_of(job.y_type);
        job.interleave = tiles ? 32 : 1;
        memory.reserve(Workspace::room<uint16_t>(round_up(job.count, 32) * padded));
        job.halves = memory.take<uint16_t>(round_up(job.count, 32) * padded);
        prepare(pool, tiles ? round_up(job.count, 16) : job.count, padded,
                [&](int64_t a, int64_t b) { k.bf16_pack_x(job, a, b); });
        if (tiles) {
            const int64_t panels = (blocks + 1) / 2;
            pool.loop(panels, grain(panels, 64 * padded * std::max<int64_t>(1, job.count / 32)),
                      [&](int64_t a, int64_t b) { amx::bf16_linear(job, a, b); });
        } else {
            pool.loop(blocks, grain(blocks, 32 * padded * std::max<int64_t>(1, job.count / 8)),
                      [&](int64_t a, int64_t b) { k.bf16_rows(job, a, b); });
        }
    }
}

void run_pack_affine(const AffinePackJob& job) {
    ThreadPool::shared().loop(job.layout.blocks, 4, [&](int64_t a, int64_t b) { pack_affine(job, a, b); });
}

void pack_bf16(const uint16_t* weight, int64_t rows, int64_t columns, uint16_t* packed, int64_t first, int64_t last) {
    const int64_t padded = round_up(columns, 32);
    for (int64_t b = first; b < last; b++) {
        uint16_t* out = packed + b * padded * 16;
        std::memset(out, 0, size_t(padded) * 32);
        for (int64_t r = 0; r < 16 && b * 16 + r < rows; r++) {
            const uint16_t* w = weight + (b * 16 + r) * columns;
            for (int64_t k = 0; k < columns; k++) out[k / 2 * 32 + r * 2 + k % 2] = w[k];
        }
    }
}

void run_pack_bf16(const uint16_t* weight, int64_t rows, int64_t columns, uint16_t* packed) {
    ThreadPool::shared().loop((rows + 15) / 16, 8,
                              [&](int64_t a, int64_t b) { pack_bf16(weight, rows, columns, packed, a, b); });
}

const char* affine_path(int64_t count, bool exact, Dtype x) {
    const Isa isa = active_isa();
    if (isa == Isa::reference) return "reference (torch)";
    if (affine_tiles(count, exact, x)) return exact ? "AMX bf16 tiles" : "AMX int8 tiles";
    if (exact) return isa == Isa::avx2 ? "AVX2 float" : "AVX-512 float";
    return isa == Isa::avx2 ? "AVX2 int8" : "AVX-512 VNNI int8";
}

const char* bf16_path(int64_t count) {
    const Isa isa = active_isa();
    if (isa == Isa::reference) return "reference (torch)";
    if (isa == Isa::amx && count >= tiles_from_bf16) return "AMX bf16 tiles";
    return isa == Isa::avx2 ? "AVX2 float" : "AVX-512 float";
}

}  // namespace qwenkit
