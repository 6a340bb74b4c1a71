#include "machine.h"

#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>

#include "cpu_features.h"
#include "dtype.h"
#include "thread_pool.h"

namespace qwenkit {
namespace {

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Sums are kept so that the loops are not optimised away.
std::atomic<uint64_t> sink{0};

__attribute__((target("avx2"))) uint64_t read_part(const char* p, int64_t bytes) {
    // Four streams with prefetch: more lines in flight than one stream's.
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    const int64_t quarter = bytes / 4 / 64 * 64;
    const char *q = p + quarter, *r = q + quarter, *s = r + quarter;
    for (int64_t i = 0; i < quarter; i += 64) {
        _mm_prefetch(p + i + 2048, _MM_HINT_T0);
        _mm_prefetch(q + i + 2048, _MM_HINT_T0);
        _mm_prefetch(r + i + 2048, _MM_HINT_T0);
        _mm_prefetch(s + i + 2048, _MM_HINT_T0);
        for (int64_t j = i; j < i + 64; j += 32) {
            a = _mm256_add_epi64(a, _mm256_loadu_si256((const __m256i*)(p + j)));
            b = _mm256_add_epi64(b, _mm256_loadu_si256((const __m256i*)(q + j)));
            c = _mm256_add_epi64(c, _mm256_loadu_si256((const __m256i*)(r + j)));
            d = _mm256_add_epi64(d, _mm256_loadu_si256((const __m256i*)(s + j)));
        }
    }
    a = _mm256_add_epi64(_mm256_add_epi64(a, b), _mm256_add_epi64(c, d));
    return uint64_t(_mm256_extract_epi64(a, 0));
}

// Twelve independent chains of one instruction, written out: a compiler may keep an array in memory.
// All registers are zero.
#define QWENKIT_CHAINS(OP, R)                                                                             \
    OP " %%" R "12, %%" R "12, %%" R "0\n" OP " %%" R "12, %%" R "12, %%" R "1\n"                         \
    OP " %%" R "12, %%" R "12, %%" R "2\n" OP " %%" R "12, %%" R "12, %%" R "3\n"                         \
    OP " %%" R "12, %%" R "12, %%" R "4\n" OP " %%" R "12, %%" R "12, %%" R "5\n"                         \
    OP " %%" R "12, %%" R "12, %%" R "6\n" OP " %%" R "12, %%" R "12, %%" R "7\n"                         \
    OP " %%" R "12, %%" R "12, %%" R "8\n" OP " %%" R "12, %%" R "12, %%" R "9\n"                         \
    OP " %%" R "12, %%" R "12, %%" R "10\n" OP " %%" R "12, %%" R "12, %%" R "11\n"
#define QWENKIT_CLOBBERS                                                                                    \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12"

__attribute__((target("avx2,fma"))) double fma_avx2(int64_t turns) {
    __asm__ volatile("vzeroall" ::: QWENKIT_CLOBBERS, "xmm13", "xmm14", "xmm15");
    for (int64_t i = 0; i < turns; i++) __asm__ volatile(QWENKIT_CHAINS("vfmadd231ps", "ymm")::: QWENKIT_CLOBBERS);
    return double(turns) * 12 * 16;
}

__attribute__((target("avx512f"))) double fma_avx512(int64_t turns) {
    __asm__ volatile("vzeroall" ::: QWENKIT_CLOBBERS, "xmm13", "xmm14", "xmm15");
    for (int64_t i = 0; i < turns; i++) __asm__ volatile(QWENKIT_CHAINS("vfmadd231ps", "zmm")::: QWENKIT_CLOBBERS);
    return double(turns) * 12 * 32;
}

__attribute__((target("avx512f,avx512vnni"))) double vnni(int64_t turns) {
    __asm__ volatile("vzeroall" ::: QWENKIT_CLOBBERS, "xmm13", "xmm14", "xmm15");
    for (int64_t i = 0; i < turns; i++) __asm__ volatile(QWENKIT_CHAINS("vpdpbusd", "zmm")::: QWENKIT_CLOBBERS);
    return double(turns) * 12 * 128;
}

struct alignas(64) TileShape {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

__attribute__((target("amx-tile,amx-int8,amx-bf16"))) double tiles(int64_t turns, bool int8) {
    TileShape shape;
    for (int i = 0; i < 8; i++) {
        shape.row_bytes[i] = 64;
        shape.rows[i] = 16;
    }
    __asm__ volatile("" ::"r"(&shape) : "memory");  // see tile_config.h
    _tile_loadconfig(&shape);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int64_t i = 0; i < turns; i++) {
        if (int8) {
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 4, 7);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        } else {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_release();
    return double(turns) * 4 * 2 * 16 * 16 * (int8 ? 64 : 32);
}

}  // namespace

double read_bandwidth(int64_t megabytes) {
    if (megabytes < 1 || megabytes > 1 << 16) throw std::invalid_argument("read_bandwidth takes 1 to 65536 megabytes.");
    if (!cpu_features().avx2) throw std::invalid_argument("read_bandwidth needs AVX2.");
    static std::mutex one_at_a_time;
    std::lock_guard lock(one_at_a_time);
    static char* data = nullptr;  // kept: filling it costs more than the measurement
    static int64_t size = 0;
    const int64_t bytes = megabytes << 20;
    if (bytes != size) {
        if (data) munmap(data, size_t(size));
        data = nullptr;
        void* p = mmap(nullptr, size_t(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
        data = static_cast<char*>(p);
        size = bytes;
        madvise(data, size_t(size), MADV_HUGEPAGE);
        for (int64_t i = 0; i < size; i += 64) data[i] = char(i >> 6);
    }
    ThreadPool& pool = ThreadPool::shared();
    const int64_t step = 8 << 20;
    double best = 0;  // of three passes: what has rested long, memory or cores, is slow at first
    for (int pass = 0; pass < 3; pass++) {
        const double start = seconds();
        pool.loop((size + step - 1) / step, 1, [&](int64_t a, int64_t b) {
            const int64_t end = std::min(b * step, size);
            sink += read_part(data + a * step, end - a * step);
        });
        best = std::max(best, double(size) / (seconds() - start));
    }
    return best;
}

double peak(const std::string& kind) {
    const CpuFeatures& f = cpu_features();
    double (*run)(int64_t) = nullptr;
    if (kind == "int8_amx" && f.amx_permitted) run = [](int64_t n) { return tiles(n, true); };
    else if (kind == "bf16_amx" && f.amx_permitted) run = [](int64_t n) { return tiles(n, false); };
    else if (kind == "int8_vnni" && f.avx512) run = vnni;
    else if (kind == "fma" && f.avx512) run = fma_avx512;
    else if (kind == "fma" && f.avx2) run = fma_avx2;
    if (!run)
        throw std::invalid_argument("No peak '" + kind +
                                    "' on this machine; kinds are int8_amx, bf16_amx, int8_vnni and fma.");
    std::atomic<int64_t> operations{0};
    const double start = seconds();
    ThreadPool::shared().loop(ThreadPool::threads() * 40, 1,
                              [&](int64_t a, int64_t b) { operations += int64_t(run((b - a) * 10000)); });
    return double(operations) / (seconds() - start);
}

Stream::Stream(int64_t bytes) {
    // Measured: a weight on 4 KB pages is read a third slower than on 2 MB ones. Mapped by hand, since malloc
    // may hand out memory that small pages already back. The last part gets a huge page of its own only if it
    // fills half of one: at most 1 MB is wasted.
    constexpr int64_t huge = 2 << 20;
    mapped_ = size_t(bytes >= huge ? round_up(bytes, huge) + huge : bytes);
    void* p = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    mapping_ = data = p;
    if (bytes < huge) return;
    data = reinterpret_cast<void*>(round_up(reinterpret_cast<int64_t>(p), huge));
    madvise(data, size_t((bytes + huge / 2) / huge * huge), MADV_HUGEPAGE);  // a hint: refused is fine
}

Stream::~Stream() { munmap(mapping_, mapped_); }

}  // namespace qwenkit
