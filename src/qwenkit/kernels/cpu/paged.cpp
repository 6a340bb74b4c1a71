#include "paged.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "cpu_features.h"
#include "kernels.h"
#include "machine.h"
#include "thread_pool.h"

namespace qwenkit {
namespace {

constexpr int64_t share_from = 64 << 10;  // bytes of keys and values below which waking threads costs more
constexpr int64_t tasks_per_thread = 4;   // with fewer, segments become tasks of their own
constexpr int64_t wave_tokens = 512;       // of a row: their queries, keys and angles stay in a cache
constexpr int64_t most_part_bytes = 64 << 20;

// Memory of the calling thread, kept between calls.
class Room {
  public:
    char* at_least(int64_t bytes) {
        if (bytes > size_) {
            stream_.reset();
            size_ = 0;
            stream_ = std::make_unique<Stream>(bytes);
            size_ = bytes;
        }
        return static_cast<char*>(stream_->data);
    }

  private:
    std::unique_ptr<Stream> stream_;
    int64_t size_ = 0;
};
thread_local Room scratch, parts;

void refuse(int64_t row, const std::string& what) {
    throw std::invalid_argument("Row " + std::to_string(row) + " " + what + ".");
}

// Everything the kernels take for granted about rows: a wrong number here must not become a wrong address.
void check(const PagedJob& job, int64_t tokens) {
    if (job.rows < 1 || job.offsets[0] != 0 || job.offsets[job.rows] != tokens)
        throw std::invalid_argument("The offsets of the rows do not cover the " + std::to_string(tokens) + " tokens.");
    for (int64_t r = 0; r < job.rows; r++) {
        const int64_t start = job.starts[r], count = int64_t(job.offsets[r + 1]) - job.offsets[r];
        if (start < 0 || count < 0)
            refuse(r, "starts at " + std::to_string(start) + " and has " + std::to_string(count) + " tokens");
        const int64_t size = job.layout.block_size, needed = count ? (start + count + size - 1) / size : 0;
        if (needed > job.width)
            refuse(r, "needs " + std::to_string(needed) + " blocks, its table has " + std::to_string(job.width));
        const int32_t* table = job.tables + r * job.width;
        uint32_t most = 0;  // a negative number is a large one
        for (int64_t i = 0; i < needed; i++) most = std::max(most, uint32_t(table[i]));
        if (most >= job.layout.blocks)
            refuse(r, "names block " + std::to_string(int32_t(most)) + " of " + std::to_string(job.layout.blocks));
    }
}

// The angles of new tokens, in all layers the same: of the first one alone.
void keep_angles(const PagedJob& job) {
    const PagedLayout& l = job.layout;
    for (int64_t r = 0; r < job.rows; r++)
        for (int64_t t = job.offsets[r]; t < job.offsets[r + 1]; t++) {
            const int64_t at = job.starts[r] + t - job.offsets[r];
            int16_t* to = l.angles + job.place(r, at / unit_tokens) * l.angle_count() + at % unit_tokens;
            for (int64_t j = 0; j < job.rotary / 2; j++, to += 2 * unit_tokens) {
                to[0] = int16_t(std::lrint(job.cos[t * job.rotary + j] * 32767));
                to[unit_tokens] = int16_t(std::lrint(job.sin[t * job.rotary + j] * 32767));
            }
        }
}

struct Wave {  // some tokens of every row: what is kept first, and the ends of its tasks
    int64_t last_keep, last_task;
};

struct Plan {
    std::vector<KeepTask> keeps;
    std::vector<AttendTask> tasks;
    std::vector<Wave> waves;
    int64_t pairs = 0;     // of a row and a head
    int64_t bytes = 0;     // of keys and values read
    int64_t segments = 0;  // of all tasks
    int64_t part_bytes = 0;

    // First token of a row in a wave, and of a unit: what the wave attends to holds no slot that is kept later.
    static int64_t wave_begin(const PagedJob& job, int64_t row, int64_t wave) {
        const int64_t before = wave ? wave * wave_tokens - job.starts[row] % unit_tokens : 0;
        return std::min<int64_t>(job.offsets[row] + before, job.offsets[row + 1]);
    }

    void add_wave(const PagedJob& job, int64_t wave, int64_t most) {
        const PagedLayout& l = job.layout;
        for (int64_t row = 0; row < job.rows; row++) {
            const int64_t start = job.starts[row];
            const int64_t first = (wave_begin(job, row, wave) - job.offsets[row]) * l.group();
            const int64_t last = (wave_begin(job, row, wave + 1) - job.offsets[row]) * l.group();
            for (int64_t head = 0; first < last && head < l.kv_heads; head++) {
                pairs += first == 0;
                for (int64_t q = first; q < last; q += most) {
                    const int64_t count = std::min(most, last - q);
                    const int64_t oldest = start + q / l.group(), newest = start + (q + count - 1) / l.group();
                    const int64_t seen = job.window ? std::max<int64_t>(0, oldest + 1 - job.window) : 0;
                    tasks.push_back({int32_t(row), int32_t(head), int32_t(q), int32_t(count),
                                     int32_t(seen / segment_tokens), int32_t(newest / segment_tokens + 1), -1,
                                     nullptr, q == first});
                    bytes += (newest + 1 - seen + unit_tokens) / unit_tokens * l.head_bytes();
                    const int64_t depth = tasks.back().last_segment - tasks.back().first_segment;
                    segments += depth;
                    part_bytes += depth * job.part_floats(count) * int64_t(sizeof(float));
                }
            }
        }
        const int64_t last = int64_t(tasks.size());
        if (waves.empty() || last > waves.back().last_task) waves.push_back({0, last});
    }

    // A task that is the only one of its keys keeps them itself.
    void keep_along(const PagedJob& job) {
        for (AttendTask& task : tasks) {
            task.keep = int32_t(keeps.size());
            keeps.push_back({task.row, task.head, job.offsets[task.row], job.offsets[task.row + 1]});
        }
    }
    // Else a wave's are kept before, unit by unit, the heads of a unit together as they lie in the input.
    void keep_before(const PagedJob& job) {
        for (int64_t wave = 0; wave < int64_t(waves.size()); wave++) {
            for (int64_t row = 0; row < job.rows; row++) {
                const int64_t before = job.starts[row] - job.offsets[row];
                const int64_t end = wave_begin(job, row, wave + 1);
                for (int64_t first = wave_begin(job, row, wave); first < end;) {
                    const int64_t last = std::min(first + unit_tokens - (before + first) % unit_tokens, end);
                    for (int64_t head = 0; head < job.layout.kv_heads; head++)
                        keeps.push_back({int32_t(row), int32_t(head), int32_t(first), int32_t(last)});
                    first = last;
                }
            }
            waves[size_t(wave)].last_keep = int64_t(keeps.size());
        }
    }

    // A few segments a task; `whole` are the tasks that put them together.
    std::vector<AttendTask> split(const PagedJob& job, int64_t wanted) {
        std::vector<AttendTask> whole = std::move(tasks);
        float* part = reinterpret_cast<float*>(parts.at_least(part_bytes));
        const int32_t most = int32_t((segments + wanted - 1) / wanted);
        tasks.clear();
        waves.resize(1);
        for (AttendTask& task : whole) {
            task.part = part;
            for (int32_t s = task.first_segment; s < task.last_segment; s += most) {
                AttendTask some = task;
                some.first_segment = s;
                some.last_segment = std::min(s + most, task.last_segment);
                some.part = part;
                tasks.push_back(some);
                part += (some.last_segment - s) * job.part_floats(task.count);
            }
        }
        waves[0].last_task = int64_t(tasks.size());
        return whole;
    }
};

}  // namespace

void run_paged(PagedJob job, int64_t tokens) {
    check(job, tokens);
    if (job.layout.keeps_angles) keep_angles(job);
    const Kernels& k = active_kernels();
    const bool tiles = active_isa() == Isa::amx && job.layout.type == Dtype::bf16;
    const auto attend = tiles ? amx::attend : k.attend;
    ThreadPool& pool = ThreadPool::shared();
    Plan plan;
    for (int64_t wave = 0; wave * wave_tokens < tokens + unit_tokens; wave++)
        plan.add_wave(job, wave, tiles ? most_tile_queries : most_queries);
    const int64_t count = int64_t(plan.tasks.size()), threads = ThreadPool::threads();
    std::vector<AttendTask> whole;
    const bool split = threads > 1 && count < tasks_per_thread * threads && plan.segments > count &&
                       plan.waves.size() == 1 && plan.part_bytes <= most_part_bytes;
    if (split) whole = plan.split(job, tasks_per_thread * threads);
    split || count > plan.pairs ? plan.keep_before(job) : plan.keep_along(job);
    auto loop = [&](int64_t first, int64_t last, int64_t bytes, auto&& body) {
        pool.loop(last - first, bytes < share_from ? last - first : 1, [&](int64_t a, int64_t b) {
            char* room = scratch.at_least(job.scratch_bytes());
            for (int64_t i = first + a; i < first + b; i++) body(size_t(i), room);
        });
    };
    Wave done{0, 0};
    for (const Wave& wave : plan.waves) {
        loop(done.last_keep, wave.last_keep, tokens * job.layout.head_bytes() / unit_tokens * job.layout.kv_heads,
             [&](size_t i, char*) { k.keep(job, plan.keeps[i]); });
        loop(done.last_task, wave.last_task, plan.bytes, [&](size_t i, char* room) {
            const AttendTask& task = plan.tasks[i];
            if (task.keep >= 0) k.keep(job, plan.keeps[size_t(task.keep)]);
            attend(job, task, room);
        });
        done = wave;
    }
    loop(0, int64_t(whole.size()), plan.part_bytes, [&](size_t i, char* room) { k.merge(job, whole[i], room); });
}

void copy_blocks(const PagedLayout& layout, char* memory, const std::vector<int64_t>& sources,
                 const std::vector<int64_t>& targets) {
    for (const auto& side : {sources, targets})
        for (int64_t block : side)
            if (block < 0 || block >= layout.blocks)
                throw std::invalid_argument("There is no block " + std::to_string(block) + " of " +
                                            std::to_string(layout.blocks) + ".");
    const int64_t per = layout.units_per_block();
    for (size_t i = 0; i < sources.size(); i++)
        for (int64_t u = 0; u < per; u++) {
            if (layout.keeps_angles)
                std::memcpy(layout.angles + (targets[i] * per + u) * layout.angle_count(),
                            layout.angles + (sources[i] * per + u) * layout.angle_count(),
                            size_t(layout.angle_count()) * sizeof(int16_t));
            for (int64_t head = 0; head < layout.kv_heads; head++)
                std::memcpy(memory + layout.offset(targets[i] * per + u, head),
                            memory + layout.offset(sources[i] * per + u, head), size_t(layout.head_bytes()));
        }
}

}  // namespace qwenkit
