// The vector type of the instruction set a file is compiled for: 16 lanes with AVX-512, 8 with AVX2.
//
// Files that include this are compiled once per set, everything in namespace QWENKIT_LANES, so that no
// inline function of one set can be linked into the other. They use no standard templates for that reason.
#pragma once
#include <immintrin.h>

#include "dtype.h"

namespace qwenkit::QWENKIT_LANES {

#if defined(__AVX512F__)

constexpr int lanes = 16;
using V = __m512;
using I = __m512i;

inline V zero() { return _mm512_setzero_ps(); }
inline V set(float x) { return _mm512_set1_ps(x); }
inline V load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
inline V from_half(__m256i h) { return _mm512_cvtph_ps(h); }
inline __m256i to_half(V v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V load(const f16* p) { return from_half(_mm256_loadu_si256((const __m256i*)p)); }
inline void store(f16* p, V v) { _mm256_storeu_si256((__m256i*)p, to_half(v)); }
inline V load(const bf16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
inline I nearest_bf16(V v) {  // in the upper half of each lane: round to nearest even; a NaN stays one
    const I u = _mm512_castps_si512(v);
    const I odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const I up = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
}
inline __m256i to_bf16(V v) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(nearest_bf16(v), 16)); }
inline void store(bf16* p, V v) { _mm256_storeu_si256((__m256i*)p, to_bf16(v)); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V div(V a, V b) { return _mm512_div_ps(a, b); }
inline V estimate(V a) { return _mm512_rcp14_ps(a); }  // of 1 / a
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V min(V a, V b) { return _mm512_min_ps(a, b); }
inline V max(V a, V b) { return _mm512_max_ps(a, b); }
inline V nearest(V a) { return _mm512_roundscale_ps(a, 8); }
inline V clamp(V a, float low, float high) { return _mm512_min_ps(_mm512_max_ps(a, set(low)), set(high)); }
inline float sum(V a) { return _mm512_reduce_add_ps(a); }
inline float smallest(V a) { return _mm512_reduce_min_ps(a); }
inline float largest(V a) { return _mm512_reduce_max_ps(a); }
inline V between(V a, V others, int64_t first, int64_t last) {  // lanes first to last of a
    const uint32_t above = first <= 0 ? 0xffff : first > 15 ? 0 : 0xffffu << first;
    const uint32_t below = last >= 15 ? 0xffff : last < 0 ? 0 : (2u << last) - 1;
    return _mm512_mask_mov_ps(others, __mmask16(above & below), a);
}
inline V scale2(V a, V n) { return _mm512_scalef_ps(a, n); }  // a 2^n
inline I bits(V a) { return _mm512_castps_si512(a); }
template <int n> inline I right_signed(I a) { return _mm512_srai_epi32(a, n); }
inline V floats(I a) { return _mm512_castsi512_ps(a); }

inline I izero() { return _mm512_setzero_si512(); }
inline I iset(int32_t x) { return _mm512_set1_epi32(x); }
inline I iload(const void* p) { return _mm512_loadu_si512(p); }
inline void istore(void* p, I v) { _mm512_storeu_si512(p, v); }
inline I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
inline I isub(I a, I b) { return _mm512_sub_epi32(a, b); }
inline I imul(I a, I b) { return _mm512_mullo_epi32(a, b); }
inline I iand(I a, I b) { return _mm512_and_si512(a, b); }
inline I ior(I a, I b) { return _mm512_or_si512(a, b); }
inline I imax_unsigned(I a, I b) { return _mm512_max_epu32(a, b); }
template <int n> inline I right(I a) { return _mm512_srli_epi32(a, n); }
template <int n> inline I left(I a) { return _mm512_slli_epi32(a, n); }
inline I high_nibbles(I a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
inline I low_nibbles(I a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
inline I widen(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline I widen(const int8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline I widen(const uint16_t* p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
inline I widen(const int16_t* p) { return _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
inline V to_float(I a) { return _mm512_cvtepi32_ps(a); }
inline I to_int(V a) { return _mm512_cvtps_epi32(a); }
inline void store_bytes(int8_t* p, I a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a)); }
inline int32_t isum(I a) { return _mm512_reduce_add_epi32(a); }
inline uint32_t max_unsigned(I a) { return _mm512_reduce_max_epu32(a); }
inline V gather(const float* p, I index) { return _mm512_i32gather_ps(index, p, 4); }

// Four unsigned codes by four signed activations a lane, added up. Eight-bit codes may be used as they are.
constexpr int code8_shift = 0;
inline I dot4(I acc, I codes, I x) { return _mm512_dpbusd_epi32(acc, codes, x); }
inline I dot8bit(I acc, I codes, I x) { return _mm512_dpbusd_epi32(acc, codes, x); }

#else

constexpr int lanes = 8;
using V = __m256;
using I = __m256i;

inline V zero() { return _mm256_setzero_ps(); }
inline V set(float x) { return _mm256_set1_ps(x); }
inline V load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, V v) { _mm256_storeu_ps(p, v); }
inline V from_half(__m128i h) { return _mm256_cvtph_ps(h); }
inline __m128i to_half(V v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V load(const f16* p) { return from_half(_mm_loadu_si128((const __m128i*)p)); }
inline void store(f16* p, V v) { _mm_storeu_si128((__m128i*)p, to_half(v)); }
inline V load(const bf16* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline I nearest_bf16(V v) {  // in the upper half of each lane: round to nearest even; a NaN stays one
    const I u = _mm256_castps_si256(v);
    const I odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const I up = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const I nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc00000), nan);
}
inline __m128i to_bf16(V v) {
    const I r = _mm256_srli_epi32(nearest_bf16(v), 16);
    const I packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    return _mm256_castsi256_si128(packed);
}
inline void store(bf16* p, V v) { _mm_storeu_si128((__m128i*)p, to_bf16(v)); }
inline V add(V a, V b) { return _mm256_add_ps(a, b); }
inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
inline V div(V a, V b) { return _mm256_div_ps(a, b); }
inline V estimate(V a) { return _mm256_rcp_ps(a); }
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline V min(V a, V b) { return _mm256_min_ps(a, b); }
inline V max(V a, V b) { return _mm256_max_ps(a, b); }
inline V nearest(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V clamp(V a, float low, float high) { return _mm256_min_ps(_mm256_max_ps(a, set(low)), set(high)); }
inline float sum(V a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float smallest(V a) {
    __m128 s = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_min_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_min_ss(s, _mm_movehdup_ps(s)));
}
inline float largest(V a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline V between(V a, V others, int64_t first, int64_t last) {  // lanes first to last of a
    const int low = first < 0 ? 0 : first > 8 ? 8 : int(first), high = last < -1 ? -1 : last > 7 ? 7 : int(last);
    const I lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const I inside = _mm256_and_si256(_mm256_cmpgt_epi32(lane, _mm256_set1_epi32(low - 1)),
                                      _mm256_cmpgt_epi32(_mm256_set1_epi32(high + 1), lane));
    return _mm256_blendv_ps(others, a, _mm256_castsi256_ps(inside));
}
inline V scale2(V a, V n) {  // a 2^n for n up to 127; below -126 zero
    const V kept = _mm256_cmp_ps(n, set(-126), _CMP_NLT_UQ);
    const I power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(power)), kept);
}
inline I bits(V a) { return _mm256_castps_si256(a); }
template <int n> inline I right_signed(I a) { return _mm256_srai_epi32(a, n); }
inline V floats(I a) { return _mm256_castsi256_ps(a); }

inline I izero() { return _mm256_setzero_si256(); }
inline I iset(int32_t x) { return _mm256_set1_epi32(x); }
inline I iload(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline void istore(void* p, I v) { _mm256_storeu_si256((__m256i*)p, v); }
inline I iadd(I a, I b) { return _mm256_add_epi32(a, b); }
inline I isub(I a, I b) { return _mm256_sub_epi32(a, b); }
inline I imul(I a, I b) { return _mm256_mullo_epi32(a, b); }
inline I iand(I a, I b) { return _mm256_and_si256(a, b); }
inline I ior(I a, I b) { return _mm256_or_si256(a, b); }
inline I imax_unsigned(I a, I b) { return _mm256_max_epu32(a, b); }
template <int n> inline I right(I a) { return _mm256_srli_epi32(a, n); }
template <int n> inline I left(I a) { return _mm256_slli_epi32(a, n); }
inline I high_nibbles(I a) { return _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(15)); }
inline I low_nibbles(I a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
inline I widen(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
inline I widen(const int8_t* p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
inline I widen(const uint16_t* p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline I widen(const int16_t* p) { return _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline V to_float(I a) { return _mm256_cvtepi32_ps(a); }
inline I to_int(V a) { return _mm256_cvtps_epi32(a); }
inline void store_bytes(int8_t* p, I a) {
    const I words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, a), 0x08);
    const __m128i half = _mm256_castsi256_si128(words);
    _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(half, half));
}
inline int32_t isum(I a) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
inline uint32_t max_unsigned(I a) {
    __m128i s = _mm_max_epu32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    s = _mm_max_epu32(s, _mm_shuffle_epi32(s, 0x4e));
    return uint32_t(_mm_cvtsi128_si32(_mm_max_epu32(s, _mm_shuffle_epi32(s, 0xb1))));
}
inline V gather(const float* p, I index) { return _mm256_i32gather_ps(p, index, 4); }

// maddubs adds two products in 16 bits: safe for codes up to 63 (16002). Eight-bit codes are shifted to
// [-128, 127] and the sign moved to the activation (32512 at most), so their zero point moves by 128.
constexpr int code8_shift = 128;
inline I dot4(I acc, I codes, I x) {
    return iadd(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)));
}
inline I dot8bit(I acc, I codes, I x) {
    const I shifted = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
    return dot4(acc, _mm256_abs_epi8(shifted), _mm256_sign_epi8(x, shifted));
}

#endif

template <class T> inline float scalar(T x);
template <> inline float scalar(float x) { return x; }
template <> inline float scalar(bf16 x) {
    const uint32_t u = uint32_t(x.bits) << 16;
    float f;
    __builtin_memcpy(&f, &u, 4);
    return f;
}
template <> inline float scalar(f16 x) { return _cvtsh_ss(x.bits); }

// The last, partial vector of a row: through a full one on the stack.
template <class T> inline V load_part(const T* p, int64_t n) {
    T full[lanes] = {};
    for (int64_t i = 0; i < n; i++) full[i] = p[i];
    return load(full);
}
template <class T> inline void store_part(T* p, V v, int64_t n) {
    T full[lanes];
    store(full, v);
    for (int64_t i = 0; i < n; i++) p[i] = full[i];
}
inline V rounded(V v, const float*) { return v; }
inline V rounded(V v, const f16*) { return from_half(to_half(v)); }
inline V rounded(V v, const bf16*) { return floats(iand(nearest_bf16(v), iset(int(0xffff0000)))); }

// e^x by 2^n e^r, |r| <= ln(2)/2, degree-6 polynomial (relative error below 2e-7). From e^-87.3; infinite above 88.72.
inline V exp(V x) {
    x = clamp(x, -87.3f, 89.0f);
    const V n = nearest(mul(x, set(1.44269504f)));
    V r = fma(n, set(-0.693359375f), x);
    r = fma(n, set(2.12194440e-4f), r);
    V p = set(1.0f / 720);
    p = fma(p, r, set(1.0f / 120));
    p = fma(p, r, set(1.0f / 24));
    p = fma(p, r, set(1.0f / 6));
    p = fma(p, r, set(0.5f));
    p = fma(p, r, set(1.0f));
    p = fma(p, r, set(1.0f));
    // n is 128 at the very top: two factors keep the exponent legal, and their product may overflow.
    const I half = to_int(mul(n, set(0.5f)));
    const I rest = isub(to_int(n), half);
    const V a = floats(left<23>(iadd(half, iset(127)))), b = floats(left<23>(iadd(rest, iset(127))));
    return mul(mul(p, a), b);
}

// 1 / a by one Newton step, within 2^-22, for a that has a normal reciprocal.
inline V reciprocal(V a) {
    const V r = estimate(a);
    return mul(r, sub(set(2.0f), mul(a, r)));
}

// 2^x for x <= 126, degree-6 polynomial (relative error below 2e-7); zero from about -127 on. 2^0 is 1 exactly.
inline V power2(V x) {
    x = max(set(-200), x);  // a NaN stays one
    const V n = nearest(x), r = sub(x, n);
    V p = set(1.54035304e-4f);
    p = fma(p, r, set(1.33335581e-3f));
    p = fma(p, r, set(9.61812911e-3f));
    p = fma(p, r, set(5.55041087e-2f));
    p = fma(p, r, set(2.40226507e-1f));
    p = fma(p, r, set(6.93147181e-1f));
    p = fma(p, r, set(1.0f));
    return scale2(p, n);
}

}  // namespace qwenkit::QWENKIT_LANES
