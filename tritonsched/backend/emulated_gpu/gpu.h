/* The emulated GPU: how long a batch takes, and that one batch at a time runs. */
#ifndef TRITONSCHED_GPU_H
#define TRITONSCHED_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TABLE_MAX = 64, NAME_MAX_BYTES = 128, PATH_MAX_BYTES = 4096, MESSAGE_MAX_BYTES = 512 };

/* What a model's parameters say of its latency. Durations in microseconds. */
typedef struct {
  double a_us, b_us; /* a + b * rows, where there is no table */
  int table_size;
  double table_rows[TABLE_MAX], table_us[TABLE_MAX]; /* rows ascending */
  double jitter_sigma;                               /* of the logarithm; 0: none */
  double overrun_rate, overrun_factor;               /* share of batches, and times how much */
  double throttle;                                   /* times the whole; > 1 is slower */
  char control_file[PATH_MAX_BYTES];                 /* "" where there is none */
  uint64_t seed;
} Latency;

/* One batch as the emulated GPU ran it, on CLOCK_MONOTONIC, in nanoseconds. */
typedef struct {
  uint64_t start_ns, end_ns;
  double throttle;
} Execution;

typedef struct Gpu Gpu;

uint64_t now_ns(void);

/* Sets one parameter. False: `message` says what is wrong with the value, or that the name is
 * unknown. */
bool latency_set(Latency *latency, const char *name, const char *value, char *message);

/* The GPU of that name, made at its first mention and kept for the life of the process; NULL only
 * without memory. */
Gpu *gpu_by_name(const char *name);

/* Waits for the GPU in order of arrival and occupies it. `random` is the model's generator state. */
Execution gpu_acquire(Gpu *gpu, const Latency *latency, uint64_t *random, uint64_t rows);

/* Sleeps until the execution's end, then lets the next batch in. */
void gpu_finish(Gpu *gpu, const Execution *execution);

#endif
