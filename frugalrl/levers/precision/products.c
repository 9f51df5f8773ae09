/* Matrix products of bfloat16 by oneDNN, as a foreign function of XLA on a CPU; see products.py.

   A call is of some products of the same shape, c = a b each. They are cut in parts, which the threads of XLA's own pool
   take one after the other, the calling one too; oneDNN has one thread for each. So there are never more at work than
   XLA was given. The call waits for parts that a thread is at work on, never for a thread, so that calls which fill the
   pool cannot wait for each other. */

#include <pthread.h>
#include <stdlib.h>

#include "oneapi/dnnl/dnnl.h"
#include "xla/ffi/api/c_api.h"

enum { ITEMS, M, N, K, A_ITEM, A_M, A_K, B_ITEM, B_K, B_N, NUMBERS }; /* sizes, and strides in numbers */
enum { GRAIN = 64 };                                                    /* rows or columns that stay together */

extern int omp_get_max_threads(void);
extern void omp_set_num_threads(int);

typedef struct {
  int64_t of[NUMBERS];
  const char *a, *b;
  char *c;
  dnnl_data_type_t type; /* of c */
  dnnl_engine_t engine;
  int along;                         /* M or N: rows or columns are cut apart */
  int64_t cuts, parts, begun, done; /* cuts of each product; parts in all */
  int owners, failed;
  pthread_mutex_t lock;
  pthread_cond_t finished;
} Work;

static dnnl_engine_t cpu;

static void find_cpu(void) {
  if (dnnl_engine_create(&cpu, dnnl_cpu, 0) != dnnl_success) cpu = NULL;
}

static dnnl_memory_desc_t matrix(int64_t rows, int64_t columns, int64_t down, int64_t right, dnnl_data_type_t type) {
  dnnl_dims_t sizes = {rows, columns}, strides = {down, right};
  dnnl_memory_desc_t found = NULL;
  dnnl_memory_desc_create_with_strides(&found, 2, sizes, type, strides);
  return found;
}

/* The first row or column of a cut. */
static int64_t edge(const Work *w, int64_t cut) {
  return cut == w->cuts ? w->of[w->along] : w->of[w->along] * cut / w->cuts / GRAIN * GRAIN;
}

static int multiply(const Work *w, int64_t part) {
  const int64_t *of = w->of, item = part / w->cuts, from = edge(w, part % w->cuts), to = edge(w, part % w->cuts + 1);
  if (from == to) return 1;
  int by_rows = w->along == M;
  int64_t row = by_rows ? from : 0, rows = by_rows ? to - from : of[M];
  int64_t column = by_rows ? 0 : from, columns = by_rows ? of[N] : to - from;
  const char *a = w->a + 2 * (item * of[A_ITEM] + row * of[A_M]);
  const char *b = w->b + 2 * (item * of[B_ITEM] + column * of[B_N]);
  char *c = w->c + dnnl_data_type_size(w->type) * ((item * of[M] + row) * of[N] + column);
  dnnl_memory_desc_t A = matrix(rows, of[K], of[A_M], of[A_K], dnnl_bf16);
  dnnl_memory_desc_t B = matrix(of[K], columns, of[B_K], of[B_N], dnnl_bf16);
  dnnl_memory_desc_t C = matrix(rows, columns, of[N], 1, w->type);
  dnnl_primitive_desc_t plan = NULL;
  dnnl_primitive_t product = NULL;
  dnnl_stream_t stream = NULL;
  dnnl_memory_t given[3] = {NULL, NULL, NULL};
  int ok = dnnl_matmul_primitive_desc_create(&plan, w->engine, A, B, NULL, C, NULL) == dnnl_success &&
           dnnl_primitive_create(&product, plan) == dnnl_success &&
           dnnl_stream_create(&stream, w->engine, dnnl_stream_default_flags) == dnnl_success &&
           dnnl_memory_create(&given[0], A, w->engine, (void *)a) == dnnl_success &&
           dnnl_memory_create(&given[1], B, w->engine, (void *)b) == dnnl_success &&
           dnnl_memory_create(&given[2], C, w->engine, c) == dnnl_success;
  if (ok) {
    dnnl_exec_arg_t arguments[] = {
        {DNNL_ARG_SRC, given[0]}, {DNNL_ARG_WEIGHTS, given[1]}, {DNNL_ARG_DST, given[2]}};
    ok = dnnl_primitive_execute(product, stream, 3, arguments) == dnnl_success &&
         dnnl_stream_wait(stream) == dnnl_success;
  }
  for (int i = 0; i < 3; i++) dnnl_memory_destroy(given[i]);
  dnnl_stream_destroy(stream);
  dnnl_primitive_destroy(product);
  dnnl_primitive_desc_destroy(plan);
  dnnl_memory_desc_destroy(A);
  dnnl_memory_desc_destroy(B);
  dnnl_memory_desc_destroy(C);
  return ok;
}

static void release(Work *w) { /* its lock is held */
  int last = --w->owners == 0;
  pthread_mutex_unlock(&w->lock);
  if (!last) return;
  pthread_cond_destroy(&w->finished);
  pthread_mutex_destroy(&w->lock);
  free(w);
}

/* Parts that nobody has begun, as long as there are any; the lock is held before and after. */
static void help(Work *w) {
  if (w->begun == w->parts) return;
  int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  while (w->begun < w->parts) {
    int64_t part = w->begun++;
    pthread_mutex_unlock(&w->lock);
    int ok = multiply(w, part);
    pthread_mutex_lock(&w->lock);
    w->failed |= !ok;
    if (++w->done == w->parts) pthread_cond_signal(&w->finished);
  }
  omp_set_num_threads(threads);
}

static void come_and_help(void *data) {
  Work *w = data;
  pthread_mutex_lock(&w->lock);
  help(w);
  release(w);
}

static int forgive(const XLA_FFI_Api *api, XLA_FFI_Error *error) {
  if (error == NULL) return 0;
  XLA_FFI_Error_Destroy_Args args = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
  api->XLA_FFI_Error_Destroy(&args);
  return 1;
}

static int64_t threads_of(XLA_FFI_CallFrame *call) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args args = {
      XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, call->ctx, &threads};
  return forgive(call->api, call->api->XLA_FFI_ThreadPool_NumThreads(&args)) || threads < 1 ? 1 : threads;
}

static XLA_FFI_Error *refused(XLA_FFI_CallFrame *call, const char *why) {
  XLA_FFI_Error_Create_Args args = {
      XLA_FFI_Error_Create_Args_STRUCT_SIZE, NULL, why, XLA_FFI_Error_Code_INTERNAL};
  return call->api->XLA_FFI_Error_Create(&args);
}

/* Of two arguments and a result, and of one attribute, the numbers that the first enum names. */
XLA_FFI_Error *product(XLA_FFI_CallFrame *call) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  if (call->extension_start != NULL && call->extension_start->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata *asked = ((XLA_FFI_Metadata_Extension *)call->extension_start)->metadata;
    asked->api_version.major_version = XLA_FFI_API_MAJOR;
    asked->api_version.minor_version = XLA_FFI_API_MINOR;
    asked->traits = 0;
    asked->state_type_id.type_id = 0; /* it keeps nothing */
    return NULL;
  }
  if (call->args.size != 2 || call->rets.size != 1 || call->attrs.size != 1 ||
      call->attrs.types[0] != XLA_FFI_AttrType_ARRAY)
    return refused(call, "a product takes two matrices and their shape");
  const XLA_FFI_Array *numbers = call->attrs.attrs[0];
  if (numbers->dtype != XLA_FFI_DataType_S64 || numbers->size != NUMBERS)
    return refused(call, "the shape of a product is ten numbers");
  pthread_once(&once, find_cpu);
  Work *w = calloc(1, sizeof(Work));
  if (w == NULL || cpu == NULL) {
    free(w);
    return refused(call, "oneDNN found no processor or no memory");
  }
  const XLA_FFI_Buffer *a = call->args.args[0], *b = call->args.args[1], *c = call->rets.rets[0];
  for (int i = 0; i < NUMBERS; i++) w->of[i] = ((const int64_t *)numbers->data)[i];
  w->a = a->data, w->b = b->data, w->c = c->data;
  w->type = c->dtype == XLA_FFI_DataType_BF16 ? dnnl_bf16 : dnnl_f32;
  w->engine = cpu;
  w->along = w->of[A_K] == 1 ? M : N; /* oneDNN's best code is for matrices without gaps, which rows of these are */
  int64_t threads = threads_of(call);
  w->cuts = w->of[ITEMS] % threads == 0 ? 1 : threads;
  w->parts = w->of[ITEMS] * w->cuts;
  w->owners = 1;
  pthread_mutex_init(&w->lock, NULL);
  pthread_cond_init(&w->finished, NULL);
  pthread_mutex_lock(&w->lock);
  for (int64_t i = 1; i < threads && i < w->parts; i++) {
    w->owners++;
    pthread_mutex_unlock(&w->lock); /* a pool may have the task done at once, by this thread */
    XLA_FFI_ThreadPool_Schedule_Args args = {
        XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, call->ctx, come_and_help, w};
    int alone = forgive(call->api, call->api->XLA_FFI_ThreadPool_Schedule(&args));
    pthread_mutex_lock(&w->lock);
    w->owners -= alone;
  }
  help(w);
  while (w->done < w->parts) pthread_cond_wait(&w->finished, &w->lock);
  int failed = w->failed;
  release(w);
  return failed ? refused(call, "oneDNN refused a product") : NULL;
}
