// Laying weights out for the kernels: once, at load time. Values are moved, never changed.
#include <cstring>
#include <stdexcept>
#include <string>

#include "affine.h"

namespace qwenkit {

AffineLayout::AffineLayout(int64_t rows_, int64_t columns_, int64_t group_, int bits_, Zeros zeros_, int64_t inner_)
    : rows(rows_), columns(columns_), group(group_), bits(bits_), zeros(zeros_), inner(inner_) {
    using std::to_string;
    if (rows < 1 || columns < 1) throw std::invalid_argument("A packed weight needs at least one row and column.");
    if (inner) {
        if (inner != 16 && inner != 32)
            throw std::invalid_argument("16 or 32 columns share an integer scale, not " + to_string(inner) + ".");
        if (group != nested_group) throw std::invalid_argument("A nested group has 256 columns, not " + to_string(group) + ".");
        if (bits != 4 && bits != 6) throw std::invalid_argument("Nested codes have 4 or 6 bits, not " + to_string(bits) + ".");
        if (zeros == Zeros::points) throw std::invalid_argument("Nested codes have minima, not zero points.");
    } else {
        if (bits != 4 && bits != 8) throw std::invalid_argument("Codes have 4 or 8 bits, not " + to_string(bits) + ".");
        if (group != 32 && group != 64 && group != 128)
            throw std::invalid_argument("A packed group has 32, 64 or 128 columns, not " + to_string(group) + ".");
        if (bits == 8 && zeros == Zeros::minima)
            throw std::invalid_argument("Minima go with 4-bit codes; 8-bit codes take zero points.");
    }
    groups = (columns + group - 1) / group;
    blocks = (rows + 15) / 16;
    code_bytes = group * bits * 2;
    const int64_t inner_bytes = inner ? group / inner * 16 : 0;
    group_bytes = code_bytes + inner_bytes + 32;
    if (zeros == Zeros::points) group_bytes += 16;
    if (zeros == Zeros::minima) group_bytes += inner_bytes + 32;
    block_bytes = groups * group_bytes;
    bytes = blocks * block_bytes;
}

namespace {

// The byte of column k of a group's row r, `code`, into the group's lines.
void place(uint8_t* lines, int bits, int64_t k, int r, uint8_t code) {
    const int64_t line = k / 4, byte = r * 4 + k % 4;
    if (bits == 8) {
        lines[line * 64 + byte] = code;
    } else if (bits == 4) {
        lines[line / 2 * 64 + byte] |= uint8_t((code & 15) << (line % 2 * 4));
    } else {
        uint8_t* unit = lines + line / 4 * 192 + byte;
        unit[line % 4 / 2 * 64] |= uint8_t((code & 15) << (line % 2 * 4));
        unit[128] |= uint8_t((code >> 4 & 3) << (line % 4 * 2));
    }
}

}  // namespace

void pack_affine(const AffinePackJob& job, int64_t first_block, int64_t last_block) {
    const AffineLayout& w = job.layout;
    // What is not codes comes before them in the nested form, else after.
    const int64_t codes_at = w.inner ? w.head_bytes() : 0, inners = w.inner ? w.inners() : 0;
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
                    if (column >= 0) place(out + codes_at, w.bits, k, r, codes[column]);
                }
                uint8_t* tail = out + (w.inner ? 0 : w.code_bytes);
                for (int64_t i = 0; i < inners; i++) {
                    const int64_t at = (source * inners + i) * w.rows + row;
                    tail[i * 16 + r] = uint8_t(job.inner_scales[at]);
                    if (w.zeros == Zeros::minima) tail[(inners + i) * 16 + r] = job.inner_minima[at];
                }
                tail += inners * (w.zeros == Zeros::minima ? 32 : 16);
                std::memcpy(tail + r * 2, job.scales + source * w.rows + row, 2);
                if (w.zeros == Zeros::points) tail[32 + r] = job.points[source * w.rows + row];
                if (w.zeros == Zeros::minima) std::memcpy(tail + 32 + r * 2, job.minima + source * w.rows + row, 2);
            }
        }
    }
}

}  // namespace qwenkit
