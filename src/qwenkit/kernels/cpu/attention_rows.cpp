// Attention with vectors: a few queries at a time against tiles of keys or values, all in float32.
#include "attention_flow.h"
#include "kernels.h"

namespace qwenkit::QWENKIT_LANES {
namespace {

constexpr int parts = 16 / lanes;          // vectors of a row of a tile
constexpr int side = lanes == 16 ? 2 : 1;  // tiles side by side
constexpr int most_rows = lanes == 16 ? 4 : 2;

// Rows 4j to 4j + 3 of a tile, columns from p * lanes on.
inline void four(const bf16* tile, int64_t j, int p, V* rows) {
    for (int i = 0; i < 2; i++) {
        const I v = iload(tile + (2 * j + i) * 32 + p * lanes * 2);
        rows[2 * i] = floats(left<16>(v));
        rows[2 * i + 1] = floats(iand(v, iset(int(0xffff0000))));
    }
}
inline void four(const int8_t* tile, int64_t j, int p, V* rows) {
    const I v = iload(tile + j * 64 + p * lanes * 4);
    rows[0] = to_float(right_signed<24>(left<24>(v)));
    rows[1] = to_float(right_signed<24>(left<16>(v)));
    rows[2] = to_float(right_signed<24>(left<8>(v)));
    rows[3] = to_float(right_signed<24>(v));
}
template <class C>
inline void four(const C* tile, int64_t j, int p, V* rows) {
    for (int i = 0; i < 4; i++) rows[i] = load(tile + (4 * j + i) * 16 + p * lanes);
}

// R rows of x times `side` columns of tiles: even and odd rows of the tiles have sums of their own.
template <int R>
struct Sums {
    V even[R][side][parts], odd[R][side][parts];

    Sums() {
        for (int r = 0; r < R; r++)
            for (int s = 0; s < side; s++)
                for (int p = 0; p < parts; p++) even[r][s][p] = odd[r][s][p] = zero();
    }
    // next: from a tile to the one at its side.
    template <class C>
    void multiply(const float* x, int64_t row, const C* tile, int64_t next) {
        for (int64_t j = 0; j < 8; j++)
            for (int s = 0; s < side; s++)
                for (int p = 0; p < parts; p++) {
                    V rows[4];
                    four(tile + s * next, j, p, rows);
                    for (int i = 0; i < 4; i += 2)
                        for (int r = 0; r < R; r++) {
                            even[r][s][p] = fma(set(x[r * row + 4 * j + i]), rows[i], even[r][s][p]);
                            odd[r][s][p] = fma(set(x[r * row + 4 * j + i + 1]), rows[i + 1], odd[r][s][p]);
                        }
                }
    }
    void write(float* y, int64_t row) const {
        for (int r = 0; r < R; r++)
            for (int s = 0; s < side; s++)
                for (int p = 0; p < parts; p++)
                    store(y + r * row + s * 16 + p * lanes, add(even[r][s][p], odd[r][s][p]));
    }
};

template <class C>
class RowProducts {
  public:
    RowProducts(const Queries& q, const float* queries, float* scores, Scratch&)
        : channels_(q.job.layout.channels()), count_(q.task.count), queries_(queries), scores_(scores) {}

    void scores(const Segment& s) const {
        for (int64_t u = s.first; u < s.last; u++)
            by_rows([&]<int R>(int64_t i, Rows<R>) {
                for (int64_t half = 0; half < 2; half += side) {
                    const C* keys = reinterpret_cast<const C*>(s.keys[u]) + half * channels_ * 16;
                    Sums<R> sums;
                    for (int64_t c = 0; c < channels_; c += 32, keys += tile_cells)
                        sums.multiply(queries_ + i * channels_ + c, channels_, keys, channels_ * 16);
                    sums.write(at(u, i) + half * 16, unit_tokens);
                }
            });
    }
    void operator()(int64_t u, int64_t i, const V* weights) const {
        for (int64_t h = 0; h < vectors; h++) store(at(u, i) + h * lanes, weights[h]);
    }
    void values(const Segment& s, float* outputs) const {
        for (int64_t c = 0; c < channels_; c += 16 * side)
            by_rows([&]<int R>(int64_t i, Rows<R>) {
                Sums<R> sums;
                for (int64_t u = s.first; u < s.last; u++)
                    sums.multiply(at(u, i), unit_tokens, reinterpret_cast<const C*>(s.values[u]) + c * 32, tile_cells);
                sums.write(outputs + i * channels_ + c, channels_);
            });
    }

  private:
    template <int R> struct Rows {};

    float* at(int64_t u, int64_t i) const { return scores_ + (u * most_queries + i) * unit_tokens; }

    template <class Body>
    void by_rows(Body&& body) const {
        int64_t i = 0;
        for (; i + most_rows <= count_; i += most_rows) body(i, Rows<most_rows>());
        for (; most_rows > 2 && i + 2 <= count_; i += 2) body(i, Rows<2>());
        for (; i < count_; i++) body(i, Rows<1>());
    }

    int64_t channels_, count_;
    const float* queries_;
    float* scores_;
};

template <class T>
void attend_rows(const PagedJob& job, const AttendTask& task, char* scratch) {
    if (job.layout.codes()) run_task<T, RowProducts<int8_t>>(job, task, scratch);
    else run_task<T, RowProducts<T>>(job, task, scratch);
}

}  // namespace

void attend(const PagedJob& job, const AttendTask& task, char* scratch) {
    if (job.layout.type == Dtype::f32) attend_rows<float>(job, task, scratch);
    else if (job.layout.type == Dtype::bf16) attend_rows<bf16>(job, task, scratch);
    else attend_rows<f16>(job, task, scratch);
}

void merge(const PagedJob& job, const AttendTask& task, char* scratch) {
    const Queries q{job, task};
    const int64_t channels = job.layout.channels(), count = task.count;
    const Part total(reinterpret_cast<float*>(scratch), count, channels);
    clear(total, count, channels);
    for (int64_t i = 0; i < task.last_segment - task.first_segment; i++) {
        const Part part(task.part + i * job.part_floats(count), count, channels);
        fold(part, total, count, channels, Outputs{part.outputs, channels});
    }
    if (job.layout.type == Dtype::f32) finish<float>(q, total);
    else if (job.layout.type == Dtype::bf16) finish<bf16>(q, total);
    else finish<f16>(q, total);
}

}  // namespace qwenkit::QWENKIT_LANES
