// Shares rows among threads and lends each its scratch memory.
#include "sampling.h"

#include <memory>

#include "kernels.h"
#include "machine.h"
#include "thread_pool.h"

namespace qwenkit {
namespace {

void* scratch(int64_t bytes) {  // of the calling thread, kept between calls
    static thread_local std::unique_ptr<Stream> memory;
    static thread_local int64_t size = 0;
    if (bytes > size) {
        memory.reset();
        size = 0;
        memory = std::make_unique<Stream>(bytes);
        size = bytes;
    }
    return memory->data;
}

template <class Job>
void share(const Job& job, int64_t count, void (*run)(const Job&, void*, int64_t, int64_t)) {
    const int64_t bytes = sampling_scratch_bytes(job.from.size);
    ThreadPool::shared().loop(count, 1, [&](int64_t a, int64_t b) { run(job, scratch(bytes), a, b); });
}

}  // namespace

void run_draws(const DrawJob& job, int64_t count) { share(job, count, active_kernels().draw); }
void run_likely(const LikelyJob& job, int64_t count) { share(job, count, active_kernels().likely); }

}  // namespace qwenkit
