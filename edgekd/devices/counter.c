/* Count the instructions of an emulated process: a plugin for qemu's user-mode emulation.
 *
 *     qemu-aarch64 -plugin libcounter.so,out=FILE …
 *
 * Each time the process closes the file descriptor MARK, which fails without an effect, one line is added to FILE: the
 * number of instructions that all of its threads have executed until then. The difference of two lines is what the
 * process executed between them, without what its start and its end need. qemu's own plugin, contrib/plugins/insn.c,
 * counts in the same way but tells only the whole process.
 *
 * Systems install no header of qemu's interface for plugins (include/qemu/qemu-plugin.h), so what is used of it is
 * declared here. VERSION is the version of the interface that the plugin asks for.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define MARK 0x45444b44
#define CLOSE 57 /* the number of the system call on aarch64 */
#define THREADS 4096

struct qemu_plugin_tb;
typedef uint64_t qemu_plugin_id_t;
typedef void (*on_block_t)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*on_run_t)(unsigned int, void *);
typedef void (*on_call_t)(qemu_plugin_id_t, unsigned int, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                          uint64_t, uint64_t, uint64_t);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, on_block_t);
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, on_run_t, int, void *);
extern void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, on_call_t);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

__attribute__((visibility("default"))) int qemu_plugin_version = VERSION;

static uint64_t counts[THREADS]; /* one for each thread, so that none waits for another */
static char path[4096];

static void on_run(unsigned int thread, void *instructions)
{
    counts[thread % THREADS] += (uintptr_t)instructions;
}

static void on_block(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(block, on_run, 0, (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void on_call(qemu_plugin_id_t id, unsigned int thread, int64_t number, uint64_t first, uint64_t a2, uint64_t a3,
                    uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)thread, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != CLOSE || (uint32_t)first != MARK)
        return;
    uint64_t sum = 0;
    for (size_t place = 0; place < THREADS; place++)
        sum += counts[place];
    FILE *file = fopen(path, "a");
    if (file) {
        fprintf(file, "%llu\n", (unsigned long long)sum);
        fclose(file);
    }
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc,
                                                               char **argv)
{
    (void)info;
    if (argc != 1 || strncmp(argv[0], "out=", 4) || strlen(argv[0]) - 4 >= sizeof path)
        return -1;
    strcpy(path, argv[0] + 4);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_block);
    qemu_plugin_register_vcpu_syscall_cb(id, on_call);
    return 0;
}
