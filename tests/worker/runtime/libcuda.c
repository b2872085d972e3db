/* A driver without a GPU, for the bindings of it: "device memory" is the host's, and all is done at once.
 *
 * What it keeps of a real one: memory is counted, of 64 MiB in all; hardly a call works before cuInit, few without
 * a context; a copy to or from memory that is not allocated is an error of that call and of each one after it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NOT_READY = 3, NO_CONTEXT = 201, ILLEGAL_ADDRESS = 700 };
enum { TOTAL = 64 << 20, BLOCKS = 256 };

static struct { char *start; size_t size; } blocks[BLOCKS];
static size_t used;
static int ready, contexts, failed, alive;

/* For the tests: how many blocks, streams and events are not given back. */
int embedmill_alive(void) { return alive; }

static int state(void) { return !ready ? NOT_READY : failed ? failed : !contexts ? NO_CONTEXT : OK; }

static int allocate(char **start, size_t size) {
    int code = state();
    if (code) return code;
    if (used + size > TOTAL) return NO_MEMORY;
    for (int i = 0; i < BLOCKS; i++)
        if (!blocks[i].start) {
            *start = blocks[i].start = malloc(size);
            blocks[i].size = size;
            used += size, alive++;
            return OK;
        }
    return NO_MEMORY;
}

static int release(char *start) {
    int code = state();
    if (code) return code;
    for (int i = 0; i < BLOCKS; i++)
        if (start && blocks[i].start == start) {
            free(start);
            blocks[i].start = NULL;
            used -= blocks[i].size, alive--;
            return OK;
        }
    return INVALID;
}

static int copy(char *device, char *to, const char *from, size_t size) {
    int code = state();
    if (code) return code;
    for (int i = 0; i < BLOCKS; i++)
        if (blocks[i].start && device >= blocks[i].start && device + size <= blocks[i].start + blocks[i].size) {
            memcpy(to, from, size);
            return OK;
        }
    return failed = ILLEGAL_ADDRESS;
}

int cuInit(unsigned flags) { ready = 1; return OK; }
int cuDriverGetVersion(int *version) { *version = 13000; return OK; }
int cuDeviceGetCount(int *count) { *count = 1; return ready ? OK : NOT_READY; }
int cuDeviceGet(int *device, int number) { *device = 0; return !ready ? NOT_READY : number ? 101 : OK; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "No GPU", size); return OK; }
int cuDeviceGetPCIBusId(char *id, int size, int device) { strncpy(id, "0000:1B:00.0", size); return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 16 ? 132 : attribute == 75 ? 9 : 0;
    return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &ready; return OK; }
int cuCtxPushCurrent_v2(void *context) { contexts++; return OK; }
int cuCtxPopCurrent_v2(void **context) { *context = &ready; return contexts-- ? OK : NO_CONTEXT; }
int cuCtxGetCurrent(void **context) { *context = contexts ? &ready : NULL; return OK; }
int cuCtxGetDevice(int *device) { *device = 0; return contexts ? OK : NO_CONTEXT; }

int cuMemGetInfo_v2(size_t *left, size_t *total) { *left = TOTAL - used; *total = TOTAL; return state(); }
int cuMemAlloc_v2(char **start, size_t size) { return allocate(start, size); }
int cuMemFree_v2(char *start) { return release(start); }
int cuMemHostAlloc(char **start, size_t size, unsigned flags) { return allocate(start, size); }
int cuMemFreeHost(char *start) { return release(start); }
int cuMemcpyHtoDAsync_v2(char *to, const char *from, size_t size, void *stream) { return copy(to, to, from, size); }
int cuMemcpyDtoHAsync_v2(char *to, char *from, size_t size, void *stream) { return copy(from, to, from, size); }

static int make(void **handle) {
    int code = state();
    if (code) return code;
    *handle = calloc(1, sizeof(struct timespec));
    alive++;
    return OK;
}
static int drop(void *handle) {
    int code = state();
    if (code) return code;
    free(handle);
    alive--;
    return OK;
}
int cuStreamCreate(void **stream, unsigned flags) { return make(stream); }
int cuStreamDestroy_v2(void *stream) { return drop(stream); }
int cuStreamSynchronize(void *stream) { return state(); }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return event ? state() : INVALID; }
int cuEventCreate(void **event, unsigned flags) { return make(event); }
int cuEventDestroy_v2(void *event) { return drop(event); }
int cuEventRecord(void *event, void *stream) { clock_gettime(CLOCK_MONOTONIC, event); return state(); }
int cuEventSynchronize(void *event) { return state(); }
int cuEventElapsedTime_v2(float *ms, const struct timespec *from, const struct timespec *to) {
    *ms = 1e3 * (to->tv_sec - from->tv_sec) + 1e-6 * (to->tv_nsec - from->tv_nsec);
    return state();
}
int cuEventElapsedTime(float *ms, void *from, void *to) { return cuEventElapsedTime_v2(ms, from, to); }

int cuGetErrorString(int code, const char **text) {
    *text = code == NO_MEMORY ? "out of memory" : code == ILLEGAL_ADDRESS ? "an illegal memory access was encountered"
            : code == NO_CONTEXT ? "invalid device context" : code == 101 ? "invalid device ordinal" : "failed";
    return OK;
}
int cuGetErrorName(int code, const char **text) { return cuGetErrorString(code, text); }

/* The bindings ask for every function here, by its name without a version. */
int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
    static const char *const suffixes[] = {"_v3", "_v2", ""};
    char symbol[128];
    *function = NULL;
    for (int i = 0; i < 3 && !*function; i++) {
        strncpy(symbol, name, 100)[100] = 0;
        *function = dlsym(RTLD_DEFAULT, strcat(symbol, suffixes[i]));
    }
    if (status) *status = *function ? 0 : 1;
    return *function ? OK : 500;
}
int cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
