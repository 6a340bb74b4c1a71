#include "cpu_features.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace qwenkit {
namespace {

uint64_t saved_state() {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t(high) << 32) | low;
}

CpuFeatures ask() {
    CpuFeatures f;
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
    const bool osxsave = c & (1u << 27), fma = c & (1u << 12), f16c = c & (1u << 29);
    if (!osxsave) return f;
    const uint64_t state = saved_state();
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
    f.avx2 = (b & (1u << 5)) && fma && f16c && (state & 0x6) == 0x6;
    const uint32_t f_dq_bw_vl = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);
    f.avx512 = f.avx2 && (b & f_dq_bw_vl) == f_dq_bw_vl && (c & (1u << 11)) && (state & 0xe6) == 0xe6;
    const bool more = a >= 1;
    const uint32_t bf16_tile_int8 = (1u << 22) | (1u << 24) | (1u << 25);
    f.amx = f.avx512 && (d & bf16_tile_int8) == bf16_tile_int8 && (state & 0x60000) == 0x60000;
    f.amx = f.amx && more && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5));  // conversions to bf16
    if (f.amx) {
        // Tile data is 8 KB of state per thread: Linux keeps it off until a process asks (5.16 and later).
        constexpr int request_permission = 0x1023, tile_data = 18;
        f.amx_permitted = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
        if (!f.amx_permitted) f.amx_refusal = std::strerror(errno);
    }
    return f;
}

std::atomic<int> chosen{-1};

}  // namespace

const CpuFeatures& cpu_features() {
    static const CpuFeatures features = ask();
    return features;
}

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::avx2: return "avx2";
        case Isa::avx512: return "avx512";
        case Isa::amx: return "amx";
        default: return "reference";
    }
}

Isa isa_from_name(const std::string& name) {
    for (Isa isa : {Isa::reference, Isa::avx2, Isa::avx512, Isa::amx})
        if (name == isa_name(isa)) return isa;
    throw std::invalid_argument("Unknown instruction set '" + name +
                                "'; choose reference, avx2, avx512 or amx.");
}

std::string missing_for(Isa isa) {
    const CpuFeatures& f = cpu_features();
    if (isa >= Isa::avx2 && !f.avx2) return "AVX2 with FMA and F16C";
    if (isa >= Isa::avx512 && !f.avx512) return "AVX-512 F, BW, DQ, VL and VNNI";
    if (isa >= Isa::amx && !f.amx) return "AMX int8 and bf16, AVX-512 BF16";
    if (isa >= Isa::amx && !f.amx_permitted) return "the system's permission to use AMX (" + f.amx_refusal + ")";
    return "";
}

Isa best_isa() {
    for (Isa isa : {Isa::amx, Isa::avx512, Isa::avx2})
        if (missing_for(isa).empty()) return isa;
    return Isa::reference;
}

void set_isa(Isa isa) {
    const std::string missing = missing_for(isa);
    if (!missing.empty())
        throw std::invalid_argument(std::string("Instruction set '") + isa_name(isa) +
                                    "' cannot run here: this machine lacks " + missing + ".");
    chosen.store(int(isa));
}

Isa active_isa() {
    int isa = chosen.load(std::memory_order_relaxed);
    if (isa >= 0) return Isa(isa);
    const char* name = std::getenv("QWENKIT_ISA");
    set_isa(name && *name ? isa_from_name(name) : best_isa());
    return Isa(chosen.load());
}

}  // namespace qwenkit
