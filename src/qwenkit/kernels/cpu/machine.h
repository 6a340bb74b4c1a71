// What this machine can do at best: the yardsticks for the kernels.
#pragma once
#include <cstdint>
#include <string>

namespace qwenkit {

double read_bandwidth(int64_t megabytes);       // bytes a second over the pool's threads, one pass over fresh lines
double peak(const std::string& kind);           // operations a second: int8_amx, bf16_amx, int8_vnni, fma
void* allocate_stream(int64_t bytes);           // for memory read in long streams: on huge pages where granted

}  // namespace qwenkit
