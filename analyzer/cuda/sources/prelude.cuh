// What every kernel is written in, so that one source is compiled for the GPU by NVRTC and for the CPU by a C++
// compiler, where tests and sanitizers run it. A kernel is a sequence of loops over the threads of its block with SYNC()
// between them; a loop's turns must not depend on each other. On the CPU a block is one call, its loops run in order.
#ifdef CXLS_HOST
#include <cmath>
#include <cstdint>
#include <cstring>
using std::exp; using std::expm1; using std::log; using std::log1p; using std::sqrt;
#define DEVICE static inline
// The harness calls a block at a time: the first two arguments say which.
#define KERNEL(name, threads, ...) extern "C" void name(int block_x, int block_y, __VA_ARGS__)
#define BLOCK_X block_x
#define BLOCK_Y block_y
#define LANES(i, n) for (int i = 0; i < (n); ++i)
#define ONE_LANE
#define SYNC()
#define SHARED static thread_local
template <class T> static inline T atomic_add(T* at, T value) { T old = *at; *at = old + value; return old; }
template <class T> static inline T atomic_max(T* at, T value) { T old = *at; if (value > old) *at = value; return old; }
#else
typedef signed char int8_t; typedef unsigned char uint8_t; typedef short int16_t; typedef unsigned short uint16_t;
typedef int int32_t; typedef unsigned int uint32_t; typedef long long int64_t; typedef unsigned long long uint64_t;
#define DEVICE static __device__ __forceinline__
#define KERNEL(name, threads, ...) extern "C" __global__ void __launch_bounds__(threads) name(__VA_ARGS__)
#define BLOCK_X ((int)blockIdx.x)
#define BLOCK_Y ((int)blockIdx.y)
#define LANES(i, n) for (int i = (int)threadIdx.x; i < (n); i += (int)blockDim.x)
#define ONE_LANE if (threadIdx.x == 0)
#define SYNC() __syncthreads()
#define SHARED __shared__
template <class T> static __device__ __forceinline__ T atomic_add(T* at, T value) { return atomicAdd(at, value); }
template <class T> static __device__ __forceinline__ T atomic_max(T* at, T value) { return atomicMax(at, value); }
#endif
