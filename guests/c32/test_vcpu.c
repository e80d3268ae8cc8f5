/* vcpu_op, timers, sched_op: areas and deadlines in the 32-bit layout. */
#include "c32.h"

static struct vcpu_runstate_info runstate;
static struct vcpu_time_info time_area[2] __attribute__((aligned(64)));
static uint32_t timer_port;

/* KVM itself answers SCHEDOP_poll where it intercepts hypercalls: by a yield,
 * without a look at the argument. Xen says that a poll may end at any time. */
static int poll_yields(void) {
    return has_word("poll=yields");
}

_Static_assert(sizeof(struct vcpu_runstate_info) == 44, "runstate of 32-bit guests");
_Static_assert(offsetof(struct vcpu_runstate_info, state_entry_time) == 4, "runstate");
_Static_assert(sizeof(struct vcpu_set_singleshot_timer) == 12, "singleshot timer");

static void registrations(void) {
    struct vcpu_info *target = own_info(0);
    struct vcpu_register_vcpu_info info = {.mfn = (uint32_t)target >> 12, .offset = 0x102};
    equal("vcpu_info, aligned to 2", VCPU(VCPUOP_register_vcpu_info, 0, info), -ENXIO);
    info.offset = PAGE - 60;
    equal("vcpu_info beyond the page", VCPU(VCPUOP_register_vcpu_info, 0, info), -ENXIO);
    info.offset = (uint32_t)target % PAGE;
    info.mfn = 0xb0000;
    equal("vcpu_info where no RAM is", VCPU(VCPUOP_register_vcpu_info, 0, info), -EINVAL);
    info.mfn = (uint32_t)target >> 12;
    struct line before = read_line(&infos[0]->time);
    equal("register_vcpu_info, aligned to 4", VCPU(VCPUOP_register_vcpu_info, 0, info), 0);
    infos[0] = target;
    struct line after = read_line(&infos[0]->time);
    holds("the same clock", after.tsc == before.tsc && after.ns == before.ns &&
          after.mul == before.mul && after.shift == before.shift, 0);
    equal("register it twice", VCPU(VCPUOP_register_vcpu_info, 0, info), -EINVAL);
    equal("of no vCPU", VCPU(VCPUOP_register_vcpu_info, 99, info), -ENOENT);
    if (start_second_cpu()) {
        info.mfn = (uint32_t)own_info(1) >> 12;
        info.offset = (uint32_t)own_info(1) % PAGE;
        long far = VCPU(VCPUOP_register_vcpu_info, 1, info);
        holds("vCPU 1's from vCPU 0", far == -EINVAL || far == 0, far);
        if (far == 0) {
            infos[1] = own_info(1);
        }
    }

    struct vcpu_register_time_memory_area time;
    memset(&time, 0xff, sizeof time); /* the upper half of the union is not ours to fill */
    set_xen_guest_handle(time.addr.h, alias(&time_area[0]));
    equal("register_vcpu_time_memory_area", VCPU(VCPUOP_register_vcpu_time_memory_area, 0, time), 0);
    struct line area = read_line(&time_area[0]);
    holds("its clock is the same", area.tsc == after.tsc && area.ns == after.ns &&
          area.mul == after.mul && area.shift == after.shift, 0);
    set_xen_guest_handle(time.addr.h, (void *)hole);
    /* Xen finds out later, and says nothing; who looks at once may say so. */
    long answer = VCPU(VCPUOP_register_vcpu_time_memory_area, 0, time);
    holds("a time area nowhere", answer == 0 || answer == -EFAULT, answer);
    set_xen_guest_handle(time.addr.h, &time_area[0]);
    equal("and back", VCPU(VCPUOP_register_vcpu_time_memory_area, 0, time), 0);
}

/* The entry time less all that was spent in any state: when the vCPU was made. */
static int64_t made_at(const struct vcpu_runstate_info *area) {
    uint64_t sum = area->time[0] + area->time[1] + area->time[2] + area->time[3];
    return (int64_t)(area->state_entry_time - sum);
}

static void run_states(void) {
    struct vcpu_runstate_info now[2];
    memset(now, 0x5a, sizeof now);
    equal("get_runstate_info", VCPU(VCPUOP_get_runstate_info, 0, now[0]), 0);
    equal("running", now[0].state, RUNSTATE_running);
    equal("of 44 bytes", now[1].state, 0x5a5a5a5a);
    uint64_t sum = now[0].time[0] + now[0].time[1] + now[0].time[2] + now[0].time[3];
    uint64_t later = now_ns(0);
    holds("its sum is the time", sum <= later && later - sum < 1000000000, (int64_t)(later - sum));

    struct vcpu_register_runstate_memory_area area;
    memset(&area, 0xff, sizeof area);
    set_xen_guest_handle(area.addr.h, &runstate);
    equal("register_runstate_memory_area", VCPU(VCPUOP_register_runstate_memory_area, 0, area), 0);
    equal("running", runstate.state, RUNSTATE_running);
    equal("update flag off", runstate.state_entry_time >> 63, 0);
    equal("vm_assist", call3(__HYPERVISOR_vm_assist, VMASST_CMD_enable,
                             VMASST_TYPE_runstate_update_flag, 0), 0);
    int64_t made = made_at(&runstate);
    uint64_t blocked = runstate.time[RUNSTATE_blocked];
    uint64_t end = now_ns(0) + 30000000;
    struct sched_poll poll = {.timeout = end};
    equal("poll for 30 ms", CALL(__HYPERVISOR_sched_op, SCHEDOP_poll, poll), 0);
    if (!poll_yields()) {
        holds("not early", now_ns(0) >= end, (int64_t)(end - now_ns(0)));
        holds("it was blocked meanwhile", runstate.time[RUNSTATE_blocked] - blocked >= 1000000,
              (int64_t)(runstate.time[RUNSTATE_blocked] - blocked));
    }
    equal("vm_assist off", call3(__HYPERVISOR_vm_assist, VMASST_CMD_disable,
                                 VMASST_TYPE_runstate_update_flag, 0), 0);
    /* Across two pages, whose frames are not neighbours. */
    struct vcpu_runstate_info *across = (struct vcpu_runstate_info *)(window + PAGE - 20);
    set_xen_guest_handle(area.addr.h, across);
    equal("a runstate across pages", VCPU(VCPUOP_register_runstate_memory_area, 0, area), 0);
    equal("running", across->state, RUNSTATE_running);
    equal("its sum, to the nanosecond", made_at(across), made);
    set_xen_guest_handle(area.addr.h, &runstate);
    equal("and back", VCPU(VCPUOP_register_runstate_memory_area, 0, area), 0);
}

void test_vcpu(void) {
    registrations();
    run_states();
    equal("is_up", call3(__HYPERVISOR_vcpu_op, VCPUOP_is_up, 0, 0), 1);
    equal("is_up of none", call3(__HYPERVISOR_vcpu_op, VCPUOP_is_up, 99, 0), -ENOENT);
    equal("send_nmi with an argument", call3(__HYPERVISOR_vcpu_op, VCPUOP_send_nmi, 0, 1), -EINVAL);
    struct vcpu_get_physid physid;
    equal("get_physid", VCPU(VCPUOP_get_physid, 0, physid), -EINVAL);
    equal("unknown", call3(__HYPERVISOR_vcpu_op, 14 + 64, 0, 0), -ENOSYS);
    equal("a bad address", call3(__HYPERVISOR_vcpu_op, VCPUOP_register_vcpu_info, 0, hole), -EFAULT);
    equal("a bad address", call3(__HYPERVISOR_vcpu_op, VCPUOP_get_runstate_info, 0, hole), -EFAULT);
    topic_end("vcpu_op");
}

/* Waits for one more timer event; it must not come before `deadline`. */
static void timer_due(const char *name, uint64_t deadline) {
    uint32_t before = event_count[timer_port];
    holds(name, wait_until(&event_count[timer_port], before + 1, 3000), before);
    uint64_t now = now_ns(0);
    holds("not before its deadline", now >= deadline, (int64_t)(deadline - now));
}

static long set_timer(uint64_t deadline) {
    return call3(__HYPERVISOR_set_timer_op, (uint32_t)deadline, (uint32_t)(deadline >> 32), 0);
}

void test_timers(void) {
    struct evtchn_bind_virq virq = {.virq = VIRQ_TIMER, .vcpu = 0};
    equal("bind VIRQ_TIMER", CALL(__HYPERVISOR_event_channel_op, EVTCHNOP_bind_virq, virq), 0);
    timer_port = virq.port;
    equal("stop_periodic_timer", call3(__HYPERVISOR_vcpu_op, VCPUOP_stop_periodic_timer, 0, 0), 0);
    uint64_t deadline = now_ns(0) + 5000000;
    equal("set_timer_op", set_timer(deadline), 0);
    timer_due("set_timer_op's event", deadline);
    /* Beyond 32 bits of nanoseconds, so that a lost upper half would show. */
    equal("set_timer_op, 2^33 ns off", set_timer(now_ns(0) + (1ull << 33)), 0);
    uint32_t before = event_count[timer_port];
    equal("it has not come", wait_until(&event_count[timer_port], before + 1, 30), 0);
    equal("set_timer_op 0", set_timer(0), 0);
    struct vcpu_set_singleshot_timer shot = {.timeout_abs_ns = now_ns(0) + 5000000};
    equal("set_singleshot_timer", VCPU(VCPUOP_set_singleshot_timer, 0, shot), 0);
    timer_due("its event", shot.timeout_abs_ns);
    shot.timeout_abs_ns = 1;
    shot.flags = VCPU_SSHOTTMR_future;
    equal("in the past, FUTURE", VCPU(VCPUOP_set_singleshot_timer, 0, shot), -ETIME);
    shot.flags = 0;
    before = event_count[timer_port];
    equal("in the past", VCPU(VCPUOP_set_singleshot_timer, 0, shot), 0);
    holds("at once", wait_until(&event_count[timer_port], before + 1, 2000), 0);
    long want = cpus() == 2 ? -EINVAL : -ENOENT;
    equal("of another vCPU", VCPU(VCPUOP_set_singleshot_timer, 1, shot), want);
    shot.timeout_abs_ns = now_ns(0) + 300000000;
    VCPU(VCPUOP_set_singleshot_timer, 0, shot);
    equal("stop_singleshot_timer", call3(__HYPERVISOR_vcpu_op, VCPUOP_stop_singleshot_timer, 0, 0), 0);
    before = event_count[timer_port];
    equal("it was stopped", wait_until(&event_count[timer_port], before + 1, 330), 0);
    struct vcpu_set_periodic_timer period = {.period_ns = 2000000};
    equal("set_periodic_timer", VCPU(VCPUOP_set_periodic_timer, 0, period), 0);
    before = event_count[timer_port];
    holds("three ticks", wait_until(&event_count[timer_port], before + 3, 3000), 0);
    equal("stop_periodic_timer", call3(__HYPERVISOR_vcpu_op, VCPUOP_stop_periodic_timer, 0, 0), 0);
    period.period_ns = 999999;
    equal("a period below 1 ms", VCPU(VCPUOP_set_periodic_timer, 0, period), -EINVAL);
    topic_end("timers");
}

static void test_poll(void) {
    evtchn_port_t ports[2] = {timer_port, timer_port};
    struct sched_poll poll = {.nr_ports = 1, .timeout = now_ns(0) + 1000000000};
    set_xen_guest_handle(poll.ports, ports);
    __atomic_fetch_or(&shared->evtchn_mask[timer_port / 32], 1ul << timer_port % 32, __ATOMIC_SEQ_CST);
    uint64_t deadline = now_ns(0) + 5000000;
    set_timer(deadline);
    equal("poll a port", CALL(__HYPERVISOR_sched_op, SCHEDOP_poll, poll), 0);
    holds("woken by its event", pending(timer_port) && now_ns(0) < poll.timeout, 0);
    holds("not early", now_ns(0) >= deadline, 0);
    __atomic_fetch_and(&shared->evtchn_pending[timer_port / 32], ~(1ul << timer_port % 32),
                       __ATOMIC_SEQ_CST);
    __atomic_fetch_and(&shared->evtchn_mask[timer_port / 32], ~(1ul << timer_port % 32),
                       __ATOMIC_SEQ_CST);
    deadline = poll.timeout = now_ns(0) + 8000000;
    poll.nr_ports = 2;
    equal("poll until an absolute time", CALL(__HYPERVISOR_sched_op, SCHEDOP_poll, poll), 0);
    holds("not early", now_ns(0) >= deadline, (int64_t)(deadline - now_ns(0)));
    poll.timeout = 1;
    equal("poll until long ago", CALL(__HYPERVISOR_sched_op, SCHEDOP_poll, poll), 0);
    ports[1] = 1024;
    poll.timeout = now_ns(0) + 1000000;
    equal("poll port 1024", CALL(__HYPERVISOR_sched_op, SCHEDOP_poll, poll), -EINVAL);
    poll.nr_ports = 129;
    equal("poll 129 ports", CALL(__HYPERVISOR_sched_op, SCHEDOP_poll, poll), -EINVAL);
    poll.nr_ports = 1;
    set_xen_guest_handle(poll.ports, (evtchn_port_t *)hole);
    equal("poll, bad ports", CALL(__HYPERVISOR_sched_op, SCHEDOP_poll, poll), -EFAULT);
    equal("poll, bad address", call3(__HYPERVISOR_sched_op, SCHEDOP_poll, hole, 0), -EFAULT);
}

void test_sched(void) {
    equal("yield", call3(__HYPERVISOR_sched_op, SCHEDOP_yield, 0, 0), 0);
    uint32_t before = event_count[timer_port];
    set_timer(now_ns(0) + 5000000);
    equal("block", call3(__HYPERVISOR_sched_op, SCHEDOP_block, 0, 0), 0);
    holds("the timer comes", wait_until(&event_count[timer_port], before + 1, 3000), 0);
    if (poll_yields()) {
        print("KVMXEN guest32 left-out=SCHEDOP_poll reason=kvm-only-yields\n");
    } else {
        test_poll();
    }
    struct sched_remote_shutdown remote = {.domain_id = 0, .reason = 1};
    equal("remote_shutdown of domain 0",
          CALL(__HYPERVISOR_sched_op, SCHEDOP_remote_shutdown, remote), -EPERM);
    remote.domain_id = OTHER_DOMAIN;
    equal("remote_shutdown of none",
          CALL(__HYPERVISOR_sched_op, SCHEDOP_remote_shutdown, remote), -ESRCH);
    struct sched_watchdog watchdog = {.id = 0, .timeout = 1000};
    equal("watchdog", CALL(__HYPERVISOR_sched_op, SCHEDOP_watchdog, watchdog), 1);
    watchdog.id = 1;
    watchdog.timeout = 0;
    equal("watchdog off", CALL(__HYPERVISOR_sched_op, SCHEDOP_watchdog, watchdog), 0);
    watchdog.id = 7;
    equal("watchdog 7", CALL(__HYPERVISOR_sched_op, SCHEDOP_watchdog, watchdog), -EINVAL);
    struct sched_pin_override pin = {.pcpu = 0};
    equal("pin_override", CALL(__HYPERVISOR_sched_op, SCHEDOP_pin_override, pin), -EPERM);
    equal("shutdown, bad address", call3(__HYPERVISOR_sched_op, SCHEDOP_shutdown, hole, 0), -EFAULT);
    equal("unknown", call3(__HYPERVISOR_sched_op, 8, hole, 0), -ENOSYS);
    topic_end("sched_op");
}
