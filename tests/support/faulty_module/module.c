/* A PKCS#11 module that forwards to another one and misbehaves on command.
 *
 * It is in its own directory, which control.py creates, with the files that it uses:
 *
 *   real.so   the module it forwards to; a copy, so that no other code in the process has initialized it
 *   orders    the rules; control.py replaces the file atomically, and each call reads it, so that commands reach a
 *             module that is already loaded, in any process
 *   counters  how often each rule matched, in shared memory: counting continues in the next process after a crash
 *   log       a line when a call begins and one when it ends, and one for each login: never a PIN
 *   pin       the right PIN
 */

#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include <p11-kit/pkcs11.h>

enum { COUNTERS = 4096, MECHANISMS = 512, SLOTS = 64, SESSIONS = 1024, TEXT = 64 };

/* What a call works on, which decides what it returns while the device is unplugged. */
enum subject { LIBRARY, DEVICE, SESSION };

struct rule {
    unsigned long id; /* 0: no rule */
    unsigned long skip, times;
    int after;
    long hang; /* milliseconds, -1: forever */
    int crash, corrupt;
    long long rv; /* -1: what the real module returns */
};

struct orders {
    struct rule rule; /* the first one that applies to this call */
    CK_MECHANISM_TYPE hidden[MECHANISMS];
    size_t hidden_count;
    CK_FLAGS flags_set, flags_clear;
    unsigned long removals;
    int absent, always_authenticate, noisy;
    unsigned char text[TEXT]; /* replaces every text of the device, the slot and the module */
    CK_ULONG text_length;
};

struct call {
    uint64_t number;
    struct orders orders;
    bool forward;
    CK_RV rv; /* if it is not forwarded */
};

static char directory[PATH_MAX];
static _Atomic uint64_t *counters; /* of calls in 0, then of the rules by their ids */
static CK_FUNCTION_LIST *real;
static CK_FUNCTION_LIST faulty;
static atomic_ulong removals_seen;
static atomic_bool just_removed;
static atomic_bool wants_login[SESSIONS]; /* by handle; the tests open few at a time */

static void path_of(const char *name, char path[PATH_MAX])
{
    if (snprintf(path, PATH_MAX, "%s/%s", directory, name) >= PATH_MAX)
        abort();
}

__attribute__((format(printf, 1, 2))) static void write_log(const char *format, ...)
{
    char path[PATH_MAX], line[256];
    va_list arguments;

    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    path_of("log", path);
    /* Opened each time and written in one call, because threads, forks and other processes write to it too. */
    int file = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (file < 0)
        return; /* the directory is gone: the test has ended */
    if (write(file, line, (size_t)length) != length)
        abort();
    close(file);
}

static long long nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static CK_ULONG read_hexadecimal(const char *digits, unsigned char octets[TEXT])
{
    CK_ULONG length = 0;
    while (length < TEXT && sscanf(digits + 2 * length, "%2hhx", &octets[length]) == 1)
        length++;
    return length;
}

static FILE *open_orders(void)
{
    char path[PATH_MAX];
    path_of("orders", path);
    return fopen(path, "re");
}

/* Read the orders, and count a call of `function` for each rule that is about it. */
static struct orders read_orders(const char *function)
{
    struct orders orders = {.removals = removals_seen};
    char line[256], name[64], digits[2 * TEXT + 1];
    struct rule rule;
    unsigned long mechanism;
    FILE *file = open_orders();

    if (file == NULL)
        return orders;
    while (fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "rule %lu %63s %lu %lu %d %ld %d %d %lld", &rule.id, name, &rule.skip, &rule.times,
                   &rule.after, &rule.hang, &rule.crash, &rule.corrupt, &rule.rv) == 9) {
            if (strcmp(name, function) != 0 || rule.id >= COUNTERS)
                continue;
            uint64_t before = atomic_fetch_add(&counters[rule.id], 1);
            if (orders.rule.id == 0 && before >= rule.skip && before - rule.skip < rule.times)
                orders.rule = rule;
        } else if (sscanf(line, "hide %lu", &mechanism) == 1) {
            if (orders.hidden_count < MECHANISMS)
                orders.hidden[orders.hidden_count++] = mechanism;
        } else {
            sscanf(line, "flags %lu %lu", &orders.flags_set, &orders.flags_clear);
            sscanf(line, "device %lu %d", &orders.removals, &orders.absent);
            sscanf(line, "always-authenticate %d", &orders.always_authenticate);
            sscanf(line, "noisy %d", &orders.noisy);
            if (sscanf(line, "text %128s", digits) == 1)
                orders.text_length = read_hexadecimal(digits, orders.text);
        }
    }
    fclose(file);
    return orders;
}

static bool is_ordered(unsigned long id)
{
    char line[256];
    unsigned long other;
    bool found = false;
    FILE *file = open_orders();

    if (file == NULL)
        return false;
    while (!found && fgets(line, sizeof line, file) != NULL)
        found = sscanf(line, "rule %lu", &other) == 1 && other == id;
    fclose(file);
    return found;
}

/* Hang and crash. A hang ends early when its rule is cleared, so that a test leaves no process behind. */
static void misbehave(const struct rule *rule)
{
    const struct timespec moment = {.tv_nsec = 2000000};
    long long end = nanoseconds() + rule->hang * 1000000LL;

    while (rule->hang != 0 && (rule->hang < 0 || nanoseconds() < end) && is_ordered(rule->id))
        nanosleep(&moment, NULL);
    if (rule->crash) {
        prctl(PR_SET_DUMPABLE, 0); /* leave no core */
        raise(SIGSEGV);
    }
}

/* Print to stdout and stderr, as vendors' modules do. */
static void make_noise(const char *function)
{
    for (int descriptor = STDOUT_FILENO; descriptor <= STDERR_FILENO; descriptor++)
        dprintf(descriptor, "noise of %s\n", function);
}

/* A removed device has lost its sessions and its login, even if it is back before the next call. */
static void notice_removal(const struct orders *orders)
{
    CK_SLOT_ID slots[SLOTS];
    CK_ULONG count = SLOTS;

    if (atomic_exchange(&removals_seen, orders->removals) == orders->removals)
        return;
    just_removed = true;
    if (real != NULL && real->C_GetSlotList(CK_TRUE, slots, &count) == CKR_OK)
        for (CK_ULONG i = 0; i < count; i++)
            real->C_CloseAllSessions(slots[i]);
}

static struct call enter(enum subject subject, const char *function)
{
    struct call call = {.number = atomic_fetch_add(&counters[0], 1), .forward = true};
    const struct rule *rule = &call.orders.rule;

    write_log("enter %llu %s %d %lld\n", (unsigned long long)call.number, function, (int)getpid(), nanoseconds());
    call.orders = read_orders(function);
    if (call.orders.noisy)
        make_noise(function);
    notice_removal(&call.orders);
    if (rule->id != 0 && !rule->after) {
        misbehave(rule);
        if (rule->rv >= 0) {
            call.forward = false;
            call.rv = (CK_RV)rule->rv;
            return call;
        }
    }
    if (subject == SESSION && atomic_exchange(&just_removed, false)) {
        call.forward = false;
        call.rv = CKR_DEVICE_REMOVED;
    } else if (subject != LIBRARY && call.orders.absent) {
        call.forward = false;
        call.rv = subject == DEVICE ? CKR_TOKEN_NOT_PRESENT : CKR_SESSION_HANDLE_INVALID;
    }
    return call;
}

static CK_RV leave(const struct call *call, CK_RV rv)
{
    const struct rule *rule = &call->orders.rule;

    if (rule->id != 0 && rule->after) {
        misbehave(rule);
        if (rule->rv >= 0)
            rv = (CK_RV)rule->rv;
    }
    write_log("leave %llu %lu %lld\n", (unsigned long long)call->number, rv, nanoseconds());
    return rv;
}

/* Calls that are forwarded with changes. */

/* PKCS#11 pads these with blanks, without a terminating NUL. */
static void put_text(const struct orders *orders, unsigned char *field, size_t size)
{
    for (size_t i = 0; orders->text_length > 0 && i < size; i++)
        field[i] = i < orders->text_length ? orders->text[i] : ' ';
}

static CK_RV get_info(const struct orders *orders, CK_INFO *info)
{
    CK_RV rv = real->C_GetInfo(info);
    if (rv == CKR_OK) {
        put_text(orders, info->manufacturerID, sizeof info->manufacturerID);
        put_text(orders, info->libraryDescription, sizeof info->libraryDescription);
    }
    return rv;
}

static CK_RV get_slot_list(const struct orders *orders, CK_BBOOL present, CK_SLOT_ID *slots, CK_ULONG *count)
{
    if (!orders->absent || !present)
        return real->C_GetSlotList(present, slots, count);
    *count = 0;
    return CKR_OK;
}

static CK_RV get_slot_info(const struct orders *orders, CK_SLOT_ID slot, CK_SLOT_INFO *info)
{
    CK_RV rv = real->C_GetSlotInfo(slot, info);
    if (rv == CKR_OK && orders->absent)
        info->flags &= ~(CK_FLAGS)CKF_TOKEN_PRESENT;
    if (rv == CKR_OK) {
        put_text(orders, info->slotDescription, sizeof info->slotDescription);
        put_text(orders, info->manufacturerID, sizeof info->manufacturerID);
    }
    return rv;
}

static CK_RV get_token_info(const struct orders *orders, CK_SLOT_ID slot, CK_TOKEN_INFO *info)
{
    CK_RV rv = real->C_GetTokenInfo(slot, info);
    if (rv == CKR_OK)
        info->flags = (info->flags & ~orders->flags_clear) | orders->flags_set;
    if (rv == CKR_OK) {
        put_text(orders, info->label, sizeof info->label);
        put_text(orders, info->manufacturerID, sizeof info->manufacturerID);
        put_text(orders, info->model, sizeof info->model);
        put_text(orders, info->serialNumber, sizeof info->serialNumber);
    }
    return rv;
}

static bool is_hidden(const struct orders *orders, CK_MECHANISM_TYPE mechanism)
{
    for (size_t i = 0; i < orders->hidden_count; i++)
        if (orders->hidden[i] == mechanism)
            return true;
    return false;
}

static CK_RV get_mechanism_list(const struct orders *orders, CK_SLOT_ID slot, CK_MECHANISM_TYPE *list, CK_ULONG *count)
{
    CK_MECHANISM_TYPE all[MECHANISMS];
    CK_ULONG found = MECHANISMS, kept = 0;

    CK_RV rv = real->C_GetMechanismList(slot, all, &found);
    if (rv != CKR_OK)
        return rv;
    for (CK_ULONG i = 0; i < found; i++)
        if (!is_hidden(orders, all[i]))
            all[kept++] = all[i];
    if (list != NULL && *count < kept)
        rv = CKR_BUFFER_TOO_SMALL;
    else if (list != NULL)
        memcpy(list, all, kept * sizeof *list);
    *count = kept;
    return rv;
}

static CK_RV get_mechanism_info(const struct orders *orders, CK_SLOT_ID slot, CK_MECHANISM_TYPE type,
                                CK_MECHANISM_INFO *info)
{
    return is_hidden(orders, type) ? CKR_MECHANISM_INVALID : real->C_GetMechanismInfo(slot, type, info);
}

static CK_RV open_session(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify,
                          CK_SESSION_HANDLE *session)
{
    just_removed = false; /* the caller has dropped the old session */
    return real->C_OpenSession(slot, flags, application, notify, session);
}

static CK_RV get_label(const struct orders *orders, CK_ATTRIBUTE *attribute)
{
    CK_ULONG room = attribute->ulValueLen;

    attribute->ulValueLen = orders->text_length;
    if (attribute->pValue == NULL)
        return CKR_OK;
    if (room < orders->text_length)
        return CKR_BUFFER_TOO_SMALL;
    memcpy(attribute->pValue, orders->text, orders->text_length);
    return CKR_OK;
}

static CK_RV get_each_value(const struct orders *orders, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                            CK_ATTRIBUTE *attributes, CK_ULONG count)
{
    CK_RV worst = CKR_OK;
    for (CK_ULONG i = 0; i < count; i++) {
        CK_RV rv = attributes[i].type == CKA_LABEL
                       ? get_label(orders, &attributes[i])
                       : real->C_GetAttributeValue(session, object, &attributes[i], 1);
        worst = rv == CKR_OK ? worst : rv;
    }
    return worst;
}

static CK_RV get_attribute_value(const struct orders *orders, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                                 CK_ATTRIBUTE *attributes, CK_ULONG count)
{
    CK_RV rv = orders->text_length > 0 ? get_each_value(orders, session, object, attributes, count)
                                       : real->C_GetAttributeValue(session, object, attributes, count);
    if (orders->always_authenticate)
        for (CK_ULONG i = 0; i < count; i++)
            if (attributes[i].type == CKA_ALWAYS_AUTHENTICATE && attributes[i].pValue != NULL &&
                attributes[i].ulValueLen == sizeof(CK_BBOOL))
                *(CK_BBOOL *)attributes[i].pValue = CK_TRUE;
    return rv;
}

static size_t right_pin(unsigned char pin[256])
{
    char path[PATH_MAX];
    path_of("pin", path);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return 0;
    size_t length = fread(pin, 1, 256, file);
    fclose(file);
    return length;
}

static CK_RV log_in(const struct orders *orders, bool right, CK_SESSION_HANDLE session, CK_USER_TYPE user,
                    unsigned char *pin, CK_ULONG length)
{
    if (user == CKU_CONTEXT_SPECIFIC && orders->always_authenticate) {
        if (!wants_login[session % SESSIONS])
            return CKR_OPERATION_NOT_INITIALIZED;
        if (!right)
            return CKR_PIN_INCORRECT;
        wants_login[session % SESSIONS] = false;
        return CKR_OK;
    }
    if (pin == NULL && orders->flags_set & CKF_PROTECTED_AUTHENTICATION_PATH) {
        unsigned char typed[256];
        return real->C_Login(session, user, typed, right_pin(typed));
    }
    return real->C_Login(session, user, pin, length);
}

static CK_RV sign_init(const struct orders *orders, CK_SESSION_HANDLE session, CK_MECHANISM *mechanism,
                       CK_OBJECT_HANDLE key)
{
    if (mechanism != NULL && is_hidden(orders, mechanism->mechanism))
        return CKR_MECHANISM_INVALID;
    CK_RV rv = real->C_SignInit(session, mechanism, key);
    if (rv == CKR_OK)
        wants_login[session % SESSIONS] = orders->always_authenticate;
    return rv;
}

/* A C_Sign that fails ends the operation (PKCS#11 v3.1 section 5.13.2), even if it is not forwarded. */
static void end_signing(CK_SESSION_HANDLE session, unsigned char *data, CK_ULONG data_length)
{
    unsigned char nowhere[2048];
    CK_ULONG length = sizeof nowhere;
    real->C_Sign(session, data, data_length, nowhere, &length);
}

static CK_RV sign(const struct orders *orders, CK_SESSION_HANDLE session, unsigned char *data, CK_ULONG data_length,
                  unsigned char *signature, CK_ULONG *length)
{
    if (orders->always_authenticate && wants_login[session % SESSIONS]) {
        end_signing(session, data, data_length);
        return CKR_USER_NOT_LOGGED_IN;
    }
    CK_RV rv = real->C_Sign(session, data, data_length, signature, length);
    if (rv == CKR_OK && orders->rule.corrupt && signature != NULL && *length > 0)
        signature[*length / 2] ^= 1;
    return rv;
}

/* The calls: what each works on, its name and parameters, and how it is forwarded. */

#define CALL(subject, name, parameters, forwarded)                                                                    \
    static CK_RV faulty_##name parameters                                                                             \
    {                                                                                                                 \
        struct call call = enter(subject, #name);                                                                     \
        return leave(&call, call.forward ? (forwarded) : call.rv);                                                    \
    }

CALL(LIBRARY, C_Initialize, (void *arguments), real->C_Initialize(arguments))
CALL(LIBRARY, C_Finalize, (void *reserved), real->C_Finalize(reserved))
CALL(LIBRARY, C_GetInfo, (CK_INFO *info), get_info(&call.orders, info))
CALL(LIBRARY, C_GetSlotList, (CK_BBOOL present, CK_SLOT_ID *slots, CK_ULONG *count),
     get_slot_list(&call.orders, present, slots, count))
CALL(LIBRARY, C_GetSlotInfo, (CK_SLOT_ID slot, CK_SLOT_INFO *info), get_slot_info(&call.orders, slot, info))
CALL(DEVICE, C_GetTokenInfo, (CK_SLOT_ID slot, CK_TOKEN_INFO *info), get_token_info(&call.orders, slot, info))
CALL(DEVICE, C_GetMechanismList, (CK_SLOT_ID slot, CK_MECHANISM_TYPE *list, CK_ULONG *count),
     get_mechanism_list(&call.orders, slot, list, count))
CALL(DEVICE, C_GetMechanismInfo, (CK_SLOT_ID slot, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO *info),
     get_mechanism_info(&call.orders, slot, type, info))
CALL(DEVICE, C_OpenSession,
     (CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify, CK_SESSION_HANDLE *session),
     open_session(slot, flags, application, notify, session))
CALL(SESSION, C_CloseSession, (CK_SESSION_HANDLE session), real->C_CloseSession(session))
CALL(SESSION, C_Logout, (CK_SESSION_HANDLE session), real->C_Logout(session))
CALL(SESSION, C_FindObjectsInit, (CK_SESSION_HANDLE session, CK_ATTRIBUTE *attributes, CK_ULONG count),
     real->C_FindObjectsInit(session, attributes, count))
CALL(SESSION, C_FindObjects, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *objects, CK_ULONG most, CK_ULONG *count),
     real->C_FindObjects(session, objects, most, count))
CALL(SESSION, C_FindObjectsFinal, (CK_SESSION_HANDLE session), real->C_FindObjectsFinal(session))
CALL(SESSION, C_GetAttributeValue,
     (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *attributes, CK_ULONG count),
     get_attribute_value(&call.orders, session, object, attributes, count))
CALL(SESSION, C_SignInit, (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key),
     sign_init(&call.orders, session, mechanism, key))
CALL(SESSION, C_GenerateKeyPair,
     (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *public, CK_ULONG public_count,
      CK_ATTRIBUTE *private, CK_ULONG private_count, CK_OBJECT_HANDLE *public_key, CK_OBJECT_HANDLE *private_key),
     real->C_GenerateKeyPair(session, mechanism, public, public_count, private, private_count, public_key,
                             private_key))
CALL(SESSION, C_CreateObject,
     (CK_SESSION_HANDLE session, CK_ATTRIBUTE *attributes, CK_ULONG count, CK_OBJECT_HANDLE *object),
     real->C_CreateObject(session, attributes, count, object))
CALL(SESSION, C_DestroyObject, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object),
     real->C_DestroyObject(session, object))

static CK_RV faulty_C_Login(CK_SESSION_HANDLE session, CK_USER_TYPE user, unsigned char *pin, CK_ULONG length)
{
    unsigned char wanted[256];
    /* NULL means the PIN pad, where the right PIN is typed. */
    bool right = pin == NULL || (right_pin(wanted) == length && memcmp(wanted, pin, length) == 0);

    write_log("login %d %d %d\n", (int)getpid(), user == CKU_CONTEXT_SPECIFIC, right);
    struct call call = enter(SESSION, "C_Login");
    return leave(&call, call.forward ? log_in(&call.orders, right, session, user, pin, length) : call.rv);
}

static CK_RV faulty_C_Sign(CK_SESSION_HANDLE session, unsigned char *data, CK_ULONG data_length,
                           unsigned char *signature, CK_ULONG *length)
{
    /* Asking for the length (PKCS#11 v3.1 section 5.2) is not a signature, so it has another name. */
    struct call call = enter(SESSION, signature != NULL ? "C_Sign" : "C_Sign(NULL)");
    if (!call.forward && call.rv != CKR_OK && call.rv != CKR_BUFFER_TOO_SMALL)
        end_signing(session, data, data_length);
    return leave(&call, call.forward ? sign(&call.orders, session, data, data_length, signature, length) : call.rv);
}

static CK_RV load_real(void)
{
    char path[PATH_MAX];
    CK_C_GetFunctionList get_function_list;

    path_of("real.so", path);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    /* Through a pointer to the pointer: C has no cast from an object to a function (dlsym(3)). */
    *(void **)&get_function_list = library != NULL ? dlsym(library, "C_GetFunctionList") : NULL;
    if (get_function_list == NULL) {
        fprintf(stderr, "faults: %s\n", dlerror());
        return CKR_GENERAL_ERROR;
    }
    CK_RV rv = get_function_list(&real);
    if (rv != CKR_OK)
        return rv;
    faulty = *real;
    faulty.C_GetFunctionList = C_GetFunctionList;
#define REPLACE(name) faulty.name = faulty_##name;
    REPLACE(C_Initialize)
    REPLACE(C_Finalize)
    REPLACE(C_GetInfo)
    REPLACE(C_GetSlotList)
    REPLACE(C_GetSlotInfo)
    REPLACE(C_GetTokenInfo)
    REPLACE(C_GetMechanismList)
    REPLACE(C_GetMechanismInfo)
    REPLACE(C_OpenSession)
    REPLACE(C_CloseSession)
    REPLACE(C_Login)
    REPLACE(C_Logout)
    REPLACE(C_FindObjectsInit)
    REPLACE(C_FindObjects)
    REPLACE(C_FindObjectsFinal)
    REPLACE(C_GetAttributeValue)
    REPLACE(C_SignInit)
    REPLACE(C_Sign)
    REPLACE(C_GenerateKeyPair)
    REPLACE(C_CreateObject)
    REPLACE(C_DestroyObject)
    return CKR_OK;
}

__attribute__((visibility("default"))) CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list)
{
    struct call call = enter(LIBRARY, "C_GetFunctionList");
    CK_RV rv = !call.forward ? call.rv : real == NULL ? load_real() : CKR_OK;

    *list = rv == CKR_OK ? &faulty : NULL;
    return leave(&call, rv);
}

__attribute__((constructor)) static void find_directory(void)
{
    Dl_info self;
    char path[PATH_MAX];

    if (dladdr((void *)&counters, &self) == 0 || realpath(self.dli_fname, directory) == NULL)
        abort();
    *strrchr(directory, '/') = '\0';
    path_of("counters", path);
    int file = open(path, O_RDWR | O_CLOEXEC);
    counters = mmap(NULL, COUNTERS * sizeof *counters, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file < 0 || counters == MAP_FAILED)
        abort();
    close(file);
    removals_seen = read_orders("").removals;
}
