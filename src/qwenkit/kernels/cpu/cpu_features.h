// What the processor and the operating system allow. Knows no kernel.
#pragma once
#include <string>

namespace qwenkit {

// Ordered: a higher path may use everything of a lower one.
enum class Isa { reference = 0, avx2 = 1, avx512 = 2, amx = 3 };

struct CpuFeatures {
    bool avx2 = false;         // AVX2 + FMA + F16C, state saved by the system
    bool avx512 = false;       // F, BW, DQ, VL, VNNI, state saved by the system
    bool amx = false;          // TILE, INT8, BF16 and AVX-512 BF16 present in the processor
    bool amx_permitted = false;  // the kernel granted this process the tile state
    std::string amx_refusal;   // why not, when the processor has it
};

const CpuFeatures& cpu_features();   // asked once; also requests the tile permission
Isa best_isa();                      // the highest path this machine can run
Isa isa_from_name(const std::string& name);  // throws std::invalid_argument
const char* isa_name(Isa isa);
std::string missing_for(Isa isa);    // "" if it can run here, else what is missing

Isa active_isa();                    // QWENKIT_ISA or the best one, until set_isa
void set_isa(Isa isa);               // throws std::invalid_argument when missing_for() is not empty

}  // namespace qwenkit
