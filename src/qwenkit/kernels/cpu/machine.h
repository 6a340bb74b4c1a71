// What this machine can do at best: the yardsticks for the kernels.
#pragma once
#include <cstdint>
#include <string>

namespace qwenkit {

double read_bandwidth(int64_t megabytes);       // bytes a second over the pool's threads, one pass over fresh lines
double peak(const std::string& kind);           // operations a second: int8_amx, bf16_amx, int8_vnni, fma
void advise_huge_pages(void* data, int64_t bytes);  // a hint for memory that is read in long streams

}  // namespace qwenkit
