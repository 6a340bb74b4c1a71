// The table of one vector instruction set.
#include "kernels.h"

namespace qwenkit::QWENKIT_LANES {

const Kernels kernels{quantize,    widen,     tile,  affine_int8, affine_exact, nested_int8,
                      bf16_pack_x, bf16_rows, norm,  rope,        gate,
                      keep,        attend,    merge, draw,        likely,
                      round,       grid};

}  // namespace qwenkit::QWENKIT_LANES
