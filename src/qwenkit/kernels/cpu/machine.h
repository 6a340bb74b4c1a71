// What this machine can do at best: the yardsticks for the kernels.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace qwenkit {

double read_bandwidth(int64_t megabytes);       // bytes a second over the pool's threads, over fresh lines
double peak(const std::string& kind);           // operations a second: int8_amx, bf16_amx, int8_vnni, fma

// Memory that is read in long streams, on huge pages where the system grants them.
class Stream {
  public:
    explicit Stream(int64_t bytes);
    ~Stream();
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    void* data;

  private:
    void* mapping_;
    size_t mapped_;
};

}  // namespace qwenkit
