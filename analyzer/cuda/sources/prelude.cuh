// What every kernel is written in, so that one source is compiled for the GPU by NVRTC and for the CPU by a C++
// compiler, where tests and sanitizers run it. A kernel is a sequence of loops over the threads of its block with
// SYNC() between them; a loop's turns must not depend on each other. On the CPU a block is one call, its loops run in
// order; a test may define LANES and what goes with it beforehand, and run the threads of a block in any order.
#ifdef CXLS_HOST
#include <cmath>
#include <cstdint>
#include <cstring>
using std::exp; using std::expm1; using std::floor; using std::log; using std::log1p; using std::rint;
using std::sqrt;
#define DEVICE static inline
// The harness calls a block at a time: the first two arguments say which.
#define KERNEL(name, threads, ...) \
    extern "C" void name([[maybe_unused]] int block_x, [[maybe_unused]] int block_y, __VA_ARGS__)
#define BLOCK_X block_x
#define BLOCK_Y block_y
#ifndef LANES
#define LANES(i, n) for (int i = 0; i < (n); ++i)
#define ONE_LANE
#define SYNC()
#define SYNC_WARP()
#endif
#define ROLLED
#define UNROLLED
// A sanitizer watches what is static, but not what is a thread's own.
#ifndef SHARED
#define SHARED static thread_local
#endif
struct alignas(16) Wide { uint32_t x, y, z, w; };
// A device faults on an address that is no multiple of the value's size; so does this.
template <class T> static inline T load(const void* at) {
    if (reinterpret_cast<uintptr_t>(at) % sizeof(T)) __builtin_trap();
    T value; memcpy(&value, at, sizeof(T)); return value;
}
template <class T> static inline void store(void* at, T value) {
    if (reinterpret_cast<uintptr_t>(at) % sizeof(T)) __builtin_trap();
    memcpy(at, &value, sizeof(T));
}
// Four of the eight bytes of `low` and `high`, the first chosen by the lowest hexadecimal digit of `which`.
static inline uint32_t choose_bytes(uint32_t low, uint32_t high, uint32_t which) {
    uint64_t both = static_cast<uint64_t>(high) << 32 | low;
    uint32_t chosen = 0;
    for (int k = 0; k < 4; ++k) chosen |= static_cast<uint32_t>(both >> (8 * (which >> (4 * k) & 7)) & 0xFF) << (8 * k);
    return chosen;
}
static inline uint32_t load_anywhere(const uint8_t* at) { uint32_t value; memcpy(&value, at, 4); return value; }
template <class T> static inline T atomic_add(T* at, T value) { T old = *at; *at = old + value; return old; }
template <class T> static inline T atomic_max(T* at, T value) { T old = *at; if (value > old) *at = value; return old; }
template <class T> static inline T atomic_or(T* at, T value) { T old = *at; *at = old | value; return old; }
template <class T> static inline T atomic_and(T* at, T value) { T old = *at; *at = old & value; return old; }
#else
typedef signed char int8_t; typedef unsigned char uint8_t; typedef short int16_t; typedef unsigned short uint16_t;
typedef int int32_t; typedef unsigned int uint32_t; typedef long long int64_t; typedef unsigned long long uint64_t;
#define DEVICE static __device__ __forceinline__
#define KERNEL(name, threads, ...) extern "C" __global__ void __launch_bounds__(threads) name(__VA_ARGS__)
#define BLOCK_X ((int)blockIdx.x)
#define BLOCK_Y ((int)blockIdx.y)
#define LANES(i, n) for (int i = (int)threadIdx.x; i < (n); i += (int)blockDim.x)
#define ONE_LANE if (threadIdx.x == 0)
// Before a loop: as it is written, for few turns or short code; or all of its turns in a row.
#define ROLLED _Pragma("unroll 1")
#define UNROLLED _Pragma("unroll")
#define SYNC() __syncthreads()
// For a kernel whose block is one warp.
#define SYNC_WARP() __syncwarp()
#define SHARED __shared__
typedef uint4 Wide;
template <class T> static __device__ __forceinline__ T load(const void* at) { return *static_cast<const T*>(at); }
template <class T> static __device__ __forceinline__ void store(void* at, T value) { *static_cast<T*>(at) = value; }
static __device__ __forceinline__ uint32_t choose_bytes(uint32_t low, uint32_t high, uint32_t which) {
    return __byte_perm(low, high, which);
}
// Four bytes from any address, out of the one or two aligned words that hold them.
static __device__ __forceinline__ uint32_t load_anywhere(const uint8_t* at) {
    uint32_t behind = reinterpret_cast<uint64_t>(at) & 3, shift = 8 * behind;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(at - behind);
    return __funnelshift_r(words[0], shift ? words[1] : 0, shift);
}
template <class T> static __device__ __forceinline__ T atomic_add(T* at, T value) { return atomicAdd(at, value); }
template <class T> static __device__ __forceinline__ T atomic_max(T* at, T value) { return atomicMax(at, value); }
template <class T> static __device__ __forceinline__ T atomic_or(T* at, T value) { return atomicOr(at, value); }
template <class T> static __device__ __forceinline__ T atomic_and(T* at, T value) { return atomicAnd(at, value); }
#endif
