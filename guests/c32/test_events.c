/* Event channels of 2 levels with 32-bit words: 1024 ports. */
#include "c32.h"

#define EVENT(op, argument) CALL(__HYPERVISOR_event_channel_op, op, argument)

static uint32_t last_vcpu(void) {
    return (uint32_t)cpus() - 1;
}

static long send(uint32_t port) {
    struct evtchn_send args = {.port = port};
    return EVENT(EVTCHNOP_send, args);
}

static long close_port(uint32_t port) {
    struct evtchn_close args = {.port = port};
    return EVENT(EVTCHNOP_close, args);
}

static struct evtchn_status status(uint32_t port, long want) {
    struct evtchn_status args = {.dom = DOMID_SELF, .port = port};
    equal("status", EVENT(EVTCHNOP_status, args), want);
    return args;
}

static void set_masked(uint32_t port, int masked) {
    if (masked) {
        __atomic_fetch_or(&shared->evtchn_mask[port / 32], 1ul << port % 32, __ATOMIC_SEQ_CST);
    } else {
        __atomic_fetch_and(&shared->evtchn_mask[port / 32], ~(1ul << port % 32), __ATOMIC_SEQ_CST);
    }
}

static uint32_t bind_ipi(uint32_t vcpu) {
    struct evtchn_bind_ipi args = {.vcpu = vcpu};
    equal("bind_ipi", EVENT(EVTCHNOP_bind_ipi, args), 0);
    return args.port;
}

/* An upcall on this CPU, and one that waits for its mask to go. */
static void upcalls(void) {
    uint32_t port = bind_ipi(0);
    uint32_t before = event_count[port];
    equal("send", send(port), 0);
    holds("its upcall", wait_until(&event_count[port], before + 1, 2000), event_count[port]);
    set_masked(port, 1);
    equal("send, masked", send(port), 0);
    equal("it is pending", pending(port), 1);
    equal("no upcall", wait_until(&event_count[port], before + 2, 20), 0);
    struct evtchn_unmask unmask = {.port = port};
    equal("unmask", EVENT(EVTCHNOP_unmask, unmask), 0);
    holds("now an upcall", wait_until(&event_count[port], before + 2, 2000), event_count[port]);
    struct evtchn_status is = status(port, 0);
    equal("an IPI", is.status, EVTCHNSTAT_ipi);
    equal("of vCPU 0", is.vcpu, 0);
    struct evtchn_bind_vcpu move = {.port = port, .vcpu = last_vcpu()};
    equal("an IPI does not move", EVENT(EVTCHNOP_bind_vcpu, move), -EINVAL);
    equal("close", close_port(port), 0);
    equal("close again", close_port(port), -EINVAL);
    equal("send to none", send(port), -EINVAL);
    if (start_second_cpu()) {
        port = bind_ipi(1);
        before = event_count[port];
        for (uint32_t i = 1; i <= 20; i++) {
            equal("send to the other vCPU", send(port), 0);
            holds("its upcall there", wait_until(&event_count[port], before + i, 2000),
                  event_count[port]);
        }
        close_port(port);
    }
}

static void interdomain(void) {
    struct evtchn_alloc_unbound far = {.dom = DOMID_SELF, .remote_dom = DOMID_SELF};
    equal("alloc_unbound", EVENT(EVTCHNOP_alloc_unbound, far), 0);
    equal("unbound", status(far.port, 0).status, EVTCHNSTAT_unbound);
    struct evtchn_bind_interdomain near = {.remote_dom = DOMID_SELF, .remote_port = far.port};
    equal("bind_interdomain", EVENT(EVTCHNOP_bind_interdomain, near), 0);
    struct evtchn_status is = status(near.local_port, 0);
    equal("interdomain", is.status, EVTCHNSTAT_interdomain);
    equal("with this domain", is.u.interdomain.dom, OWN_DOMAIN);
    equal("its far port", is.u.interdomain.port, far.port);
    uint32_t before = event_count[far.port];
    equal("send along it", send(near.local_port), 0);
    holds("it comes out", wait_until(&event_count[far.port], before + 1, 2000), 0);
    struct evtchn_bind_vcpu move = {.port = far.port, .vcpu = last_vcpu()};
    equal("bind_vcpu", EVENT(EVTCHNOP_bind_vcpu, move), 0);
    equal("of that vCPU", status(far.port, 0).vcpu, last_vcpu());
    move.vcpu = 99;
    equal("bind_vcpu, no vCPU", EVENT(EVTCHNOP_bind_vcpu, move), -ENOENT);
    equal("bind twice", EVENT(EVTCHNOP_bind_interdomain, near), -EINVAL);
    near.remote_dom = OTHER_DOMAIN;
    equal("bind to another", EVENT(EVTCHNOP_bind_interdomain, near), -ESRCH);
    far.dom = OTHER_DOMAIN;
    equal("alloc_unbound of another", EVENT(EVTCHNOP_alloc_unbound, far), -ESRCH);
    far.dom = 0;
    equal("alloc_unbound of domain 0", EVENT(EVTCHNOP_alloc_unbound, far), -EPERM);
    equal("close one end", close_port(is.port), 0);
    equal("the other is unbound", status(is.u.interdomain.port, 0).status, EVTCHNSTAT_unbound);
    close_port(is.u.interdomain.port);
}

static void interrupts(void) {
    struct evtchn_bind_virq virq = {.virq = VIRQ_DEBUG, .vcpu = last_vcpu()};
    equal("bind_virq", EVENT(EVTCHNOP_bind_virq, virq), 0);
    uint32_t port = virq.port;
    equal("bind_virq again", EVENT(EVTCHNOP_bind_virq, virq), -EEXIST);
    equal("a VIRQ", status(port, 0).u.virq, VIRQ_DEBUG);
    equal("send to a VIRQ", send(port), -EINVAL);
    close_port(port);
    virq.vcpu = 99;
    equal("bind_virq, no vCPU", EVENT(EVTCHNOP_bind_virq, virq), -ENOENT);
    virq = (struct evtchn_bind_virq){.virq = 24};
    equal("VIRQ 24", EVENT(EVTCHNOP_bind_virq, virq), -EINVAL);
    virq = (struct evtchn_bind_virq){.virq = VIRQ_DOM_EXC, .vcpu = 1};
    equal("a global VIRQ of vCPU 1", EVENT(EVTCHNOP_bind_virq, virq), -EINVAL);
    struct evtchn_bind_pirq pirq = {.pirq = 20};
    equal("bind_pirq", EVENT(EVTCHNOP_bind_pirq, pirq), 0);
    port = pirq.port;
    equal("bind_pirq again", EVENT(EVTCHNOP_bind_pirq, pirq), -EEXIST);
    close_port(port);
    pirq.pirq = 1u << 30;
    equal("PIRQ 2^30", EVENT(EVTCHNOP_bind_pirq, pirq), -EINVAL);
    struct evtchn_bind_ipi ipi = {.vcpu = 99};
    equal("bind_ipi, no vCPU", EVENT(EVTCHNOP_bind_ipi, ipi), -ENOENT);
}

/* All ports that a 32-bit domain has: the last is 1023. */
static void every_port(void) {
    struct evtchn_alloc_unbound far = {.dom = DOMID_SELF, .remote_dom = DOMID_SELF};
    uint32_t highest = 0;
    long answer;
    while ((answer = EVENT(EVTCHNOP_alloc_unbound, far)) == 0) {
        highest = far.port > highest ? far.port : highest;
    }
    equal("no port left", answer, -ENOSPC);
    equal("the highest", highest, 1023);
    close_port(1023);
    uint32_t port = bind_ipi(0);
    equal("the freed one", port, 1023);
    uint32_t before = event_count[1023];
    equal("send to port 1023", send(1023), 0);
    holds("its upcall", wait_until(&event_count[1023], before + 1, 2000), event_count[1023]);
    set_masked(1023, 1);
    send(1023);
    equal("its bit is the highest of the last word", shared->evtchn_pending[31] >> 31, 1);
    equal("not port 991's", shared->evtchn_pending[30], 0);
    set_masked(1023, 0);
    equal("port 1024", send(1024), -EINVAL);
    equal("port 4095", send(4095), -EINVAL);
    status(1024, -EINVAL);
    struct evtchn_unmask unmask = {.port = 1024};
    equal("unmask port 1024", EVENT(EVTCHNOP_unmask, unmask), -EINVAL);
    struct evtchn_reset reset = {.dom = DOMID_SELF};
    equal("reset", EVENT(EVTCHNOP_reset, reset), 0);
    equal("every port is closed", status(500, 0).status, EVTCHNSTAT_closed);
    reset.dom = OTHER_DOMAIN;
    equal("reset of another", EVENT(EVTCHNOP_reset, reset), -ESRCH);
}

void test_events(void) {
    upcalls();
    interdomain();
    interrupts();
    every_port();
    struct evtchn_init_control control = {.vcpu = 0, .offset = 4};
    long answer = EVENT(EVTCHNOP_init_control, control);
    holds("init_control, misaligned", answer == -EINVAL || answer == -EOPNOTSUPP, answer);
    struct evtchn_expand_array expand = {.array_gfn = 1};
    equal("expand_array before init_control", EVENT(EVTCHNOP_expand_array, expand), -EOPNOTSUPP);
    uint32_t port = bind_ipi(0);
    struct evtchn_set_priority priority = {.port = port, .priority = 3};
    equal("set_priority with 2 levels", EVENT(EVTCHNOP_set_priority, priority), -ENOSYS);
    priority.port = 1024;
    equal("set_priority, no port", EVENT(EVTCHNOP_set_priority, priority), -EINVAL);
    close_port(port);
    equal("unknown", call3(__HYPERVISOR_event_channel_op, 15, &port, 0), -ENOSYS);
    for (uint32_t op = 0; op <= EVTCHNOP_set_priority; op++) {
        equal("a bad address", call3(__HYPERVISOR_event_channel_op, op, hole, 0), -EFAULT);
    }
    topic_end("event_channel_op");
}
