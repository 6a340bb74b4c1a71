#include "paged.h"

#include <algorithm>
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

struct Plan {
    std::vector<KeepTask> keeps;
    std::vector<AttendTask> tasks;
    int64_t bytes = 0;     // of keys and values read
    int64_t segments = 0;  // of all tasks
    int64_t part_bytes = 0;
    bool apart = false;    // keys are stored by tasks of their own

    void add_row(const PagedJob& job, int64_t row) {
        const PagedLayout& l = job.layout;
        const int64_t start = job.starts[row], first = job.offsets[row], last = job.offsets[row + 1];
        const int64_t queries = (last - first) * l.group();
        for (int64_t head = 0; head < l.kv_heads; head++)
            for (int64_t q = 0; q < queries; q += most_queries) {
                const int64_t count = std::min(most_queries, queries - q);
                const int64_t oldest = start + q / l.group(), newest = start + (q + count - 1) / l.group();
                const int64_t seen = job.window ? std::max<int64_t>(0, oldest + 1 - job.window) : 0;
                tasks.push_back({int32_t(row), int32_t(head), int32_t(q), int32_t(count), int32_t(seen / segment_tokens),
                                 int32_t(newest / segment_tokens + 1), -1, nullptr});
                bytes += (newest + 1 - seen + unit_tokens) / unit_tokens * l.head_bytes();
                const int64_t depth = tasks.back().last_segment - tasks.back().first_segment;
                segments += depth;
                part_bytes += depth * job.part_floats(count) * int64_t(sizeof(float));
            }
        apart |= queries > most_queries;
    }

    void add_keeps(const PagedJob& job) {
        if (!apart) {
            for (AttendTask& task : tasks) {
                task.keep = int32_t(keeps.size());
                keeps.push_back({task.row, task.head, job.offsets[task.row], job.offsets[task.row + 1]});
            }
            return;
        }
        for (int64_t row = 0; row < job.rows; row++)
            for (int64_t head = 0; head < job.layout.kv_heads; head++)
                for (int64_t first = job.offsets[row]; first < job.offsets[row + 1];) {
                    const int64_t slot = (job.starts[row] + first - job.offsets[row]) % unit_tokens;
                    const int64_t last = std::min<int64_t>(first + unit_tokens - slot, job.offsets[row + 1]);
                    keeps.push_back({int32_t(row), int32_t(head), int32_t(first), int32_t(last)});
                    first = last;
                }
    }

    // Every segment a task; `whole` are the tasks that put them together.
    std::vector<AttendTask> split(const PagedJob& job) {
        std::vector<AttendTask> whole = std::move(tasks);
        float* part = reinterpret_cast<float*>(parts.at_least(part_bytes));
        tasks.clear();
        for (AttendTask& task : whole) {
            task.part = part;
            for (int32_t s = task.first_segment; s < task.last_segment; s++) {
                AttendTask one = task;
                one.first_segment = s;
                one.last_segment = s + 1;
                one.part = part;
                tasks.push_back(one);
                part += job.part_floats(task.count);
            }
        }
        return whole;
    }
};

}  // namespace

void run_paged(PagedJob job, int64_t tokens) {
    check(job, tokens);
    const Kernels& k = active_kernels();
    const auto attend = active_isa() == Isa::amx && job.layout.type == Dtype::bf16 ? amx::attend : k.attend;
    ThreadPool& pool = ThreadPool::shared();
    Plan plan;
    for (int64_t row = 0; row < job.rows; row++) plan.add_row(job, row);
    const int64_t count = int64_t(plan.tasks.size());
    std::vector<AttendTask> whole;
    if (count < tasks_per_thread * ThreadPool::threads() && ThreadPool::threads() > 1 && plan.segments > count &&
        plan.part_bytes <= most_part_bytes) {
        whole = plan.split(job);
        plan.apart = true;
    }
    plan.add_keeps(job);
    auto loop = [&](const auto& list, int64_t bytes, auto&& body) {
        const int64_t size = int64_t(list.size());
        pool.loop(size, bytes < share_from ? size : 1, [&](int64_t a, int64_t b) {
            char* room = scratch.at_least(job.scratch_bytes());
            for (int64_t i = a; i < b; i++) body(list[size_t(i)], room);
        });
    };
    if (plan.apart)
        loop(plan.keeps, tokens * job.layout.head_bytes() / unit_tokens * job.layout.kv_heads,
             [&](const KeepTask& task, char*) { k.keep(job, task); });
    loop(plan.tasks, plan.bytes, [&](const AttendTask& task, char* room) {
        if (task.keep >= 0) k.keep(job, plan.keeps[size_t(task.keep)]);
        attend(job, task, room);
    });
    loop(whole, plan.part_bytes, [&](const AttendTask& task, char* room) { k.merge(job, task, room); });
}

void copy_blocks(const PagedLayout& layout, char* memory, const std::vector<int64_t>& sources,
                 const std::vector<int64_t>& targets) {
    for (const auto& side : {sources, targets})
        for (int64_t block : side)
            if (block < 0 || block >= layout.blocks)
                throw std::invalid_argument("There is no block " + std::to_string(block) + " of " +
                                            std::to_string(layout.blocks) + ".");
    const int64_t bytes = layout.block_bytes();
    for (size_t i = 0; i < sources.size(); i++)
        std::memcpy(memory + targets[i] * bytes, memory + sources[i] * bytes, size_t(bytes));
}

}  // namespace qwenkit
