// Laying weights out for the kernels: once, at load time. Values are moved, never changed.
#include <cstring>
#include <stdexcept>
#include <string>

#include "affine.h"

namespace qwenkit {

AffineLayout::AffineLayout(int64_t rows_, int64_t columns_, int64_t group_, int bits_, Zeros zeros_)
    : rows(rows_), columns(columns_), group(group_), bits(bits_), zeros(zeros_) {
    if (rows < 1 || columns < 1) throw std::invalid_argument("A packed weight needs at least one row and column.");
    if (bits != 4 && bits != 8) throw std::invalid_argument("Codes have 4 or 8 bits, not " + std::to_string(bits) + ".");
    if (group != 32 && group != 64 && group != 128)
        throw std::invalid_argument("A packed group has 32, 64 or 128 columns, not " + std::to_string(group) + ".");
    if (bits == 8 && zeros == Zeros::minima)
        throw std::invalid_argument("Minima go with 4-bit codes; 8-bit codes take zero points.");
    groups = (columns + group - 1) / group;
    blocks = (rows + 15) / 16;
    code_bytes = group * bits * 2;
    group_bytes = code_bytes + 32 + (zeros == Zeros::points ? 16 : zeros == Zeros::minima ? 32 : 0);
    block_bytes = groups * group_bytes;
    bytes = blocks * block_bytes;
}

void pack_affine(const AffinePackJob& job, int64_t first_block, int64_t last_block) {
    const AffineLayout& w = job.layout;
    const bool nibbles = w.bits == 4;
    for (int64_t b = first_block; b < last_block; b++) {
        uint8_t* out = job.packed + b * w.block_bytes;
        for (int64_t g = 0; g < w.groups; g++, out += w.group_bytes) {
            std::memset(out, 0, size_t(w.group_bytes));
            const int64_t source = job.group_map[g];
            for (int r = 0; r < 16; r++) {
                const int64_t row = b * 16 + r;
                if (row >= w.rows) break;
                const uint8_t* codes = job.codes + row * w.columns;
                for (int64_t k = 0; k < w.group; k++) {
                    const int64_t at = g * w.group + k;
                    const int64_t column = job.gather ? job.gather[at] : (at < w.columns ? at : -1);
                    if (column < 0) continue;
                    const int64_t line = k / 4, byte = r * 4 + k % 4;
                    if (nibbles)
                        out[line / 2 * 64 + byte] |= uint8_t((codes[column] & 15) << (line % 2 * 4));
                    else
                        out[line * 64 + byte] = codes[column];
                }
                uint8_t* tail = out + w.code_bytes;
                std::memcpy(tail + r * 2, job.scales + source * w.rows + row, 2);
                if (w.zeros == Zeros::points) tail[32 + r] = job.points[source * w.rows + row];
                if (w.zeros == Zeros::minima) std::memcpy(tail + 32 + r * 2, job.minima + source * w.rows + row, 2);
            }
        }
    }
}

}  // namespace qwenkit
