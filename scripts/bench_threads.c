/* The reference for several workers: two threads of one process, with OS locking, sign as fast as the module lets them.
 *
 *     bench_threads MODULE LABEL SECONDS      (the PIN in BENCH_PIN)
 *
 * Prints signatures a second. The function list is that of PKCS#11 v2.40; p11-kit's header declares it. */
#include <dlfcn.h>
#include <p11-kit/pkcs11.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define THREADS 2

static CK_FUNCTION_LIST *p11;
static CK_SLOT_ID slot;
static double seconds;

static void require(CK_RV rv, const char *what)
{
    if (rv != CKR_OK) {
        fprintf(stderr, "%s: 0x%lx\n", what, rv);
        exit(1);
    }
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void *work(void *result)
{
    CK_SESSION_HANDLE session;
    CK_OBJECT_CLASS class = CKO_PRIVATE_KEY;
    CK_ATTRIBUTE template = {CKA_CLASS, &class, sizeof class};
    CK_OBJECT_HANDLE key;
    CK_MECHANISM mechanism = {CKM_SHA256_RSA_PKCS, NULL, 0};
    CK_BYTE message[400] = {'x'}, signature[512];
    CK_ULONG found, length;
    long count = 0;

    require(p11->C_OpenSession(slot, CKF_SERIAL_SESSION, NULL, NULL, &session), "C_OpenSession");
    require(p11->C_FindObjectsInit(session, &template, 1), "C_FindObjectsInit");
    require(p11->C_FindObjects(session, &key, 1, &found), "C_FindObjects");
    require(p11->C_FindObjectsFinal(session), "C_FindObjectsFinal");
    if (found != 1)
        exit(1);
    for (double end = now() + seconds; now() < end; count++) {
        length = sizeof signature;
        require(p11->C_SignInit(session, &mechanism, key), "C_SignInit");
        require(p11->C_Sign(session, message, sizeof message, signature, &length), "C_Sign");
    }
    *(long *)result = count;
    return NULL;
}

int main(int argc, char **argv)
{
    CK_C_INITIALIZE_ARGS arguments = {.flags = CKF_OS_LOCKING_OK};
    CK_C_GetFunctionList get_function_list;
    CK_SLOT_ID slots[16];
    CK_ULONG slot_count = 16;
    CK_SESSION_HANDLE session;
    pthread_t threads[THREADS];
    long counts[THREADS], total = 0;
    char *pin = getenv("BENCH_PIN");
    void *module = argc == 4 && pin ? dlopen(argv[1], RTLD_NOW) : NULL;

    if (!module)
        return 2;
    *(void **)&get_function_list = dlsym(module, "C_GetFunctionList");
    seconds = atof(argv[3]);
    require(get_function_list(&p11), "C_GetFunctionList");
    require(p11->C_Initialize(&arguments), "C_Initialize");
    require(p11->C_GetSlotList(CK_TRUE, slots, &slot_count), "C_GetSlotList");
    for (CK_ULONG i = 0; i < slot_count; i++) {
        CK_TOKEN_INFO info;
        require(p11->C_GetTokenInfo(slots[i], &info), "C_GetTokenInfo");
        if (strncmp((char *)info.label, argv[2], strlen(argv[2])) == 0)
            slot = slots[i];
    }
    require(p11->C_OpenSession(slot, CKF_SERIAL_SESSION, NULL, NULL, &session), "C_OpenSession");
    require(p11->C_Login(session, CKU_USER, (CK_UTF8CHAR *)pin, strlen(pin)), "C_Login");
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, work, &counts[i]);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        total += counts[i];
    }
    printf("%f\n", (double)total / seconds);
    return 0;
}
