//! Threads instead of vCPUs: what counts is that none works while held.

use std::sync::atomic::AtomicU64;
use std::thread;

use super::*;

const SOON: Duration = Duration::from_secs(20);

/// Threads that count while they are let, and what they counted.
struct Workers {
    pause: Arc<Pause>,
    count: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Workers {
    fn start(number: u32) -> Self {
        let pause = Arc::new(Pause::new(number));
        let (count, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let threads = (0..number)
            .map(|_| {
                pause.enter();
                let (pause, count, stop) =
                    (Arc::clone(&pause), Arc::clone(&count), Arc::clone(&stop));
                thread::spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        pause.pass(|| false, || ());
                        count.fetch_add(1, Ordering::SeqCst);
                        thread::yield_now();
                    }
                    pause.leave();
                })
            })
            .collect();
        Self { pause, count, stop, threads }
    }

    fn counted(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    fn moves(&self) -> bool {
        let before = self.counted();
        let begin = Instant::now();
        while self.counted() == before && begin.elapsed() < SOON {
            thread::yield_now();
        }
        self.counted() > before
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.pause.end();
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

#[test]
fn nobody_works_while_held() {
    let workers = Workers::start(4);
    for _ in 0..200 {
        let hold = workers.pause.hold(SOON, || {}).unwrap();
        let before = workers.counted();
        thread::sleep(Duration::from_micros(200));
        assert_eq!(workers.counted(), before);
        drop(hold);
        assert!(workers.moves());
    }
    workers.end();
}

#[test]
fn holds_are_counted() {
    let workers = Workers::start(2);
    let outer = workers.pause.hold(SOON, || {}).unwrap();
    let inner = workers.pause.hold(SOON, || {}).unwrap();
    let before = workers.counted();
    drop(outer);
    thread::sleep(Duration::from_millis(5));
    assert_eq!(workers.counted(), before);
    assert!(workers.pause.is_held());
    drop(inner);
    assert!(!workers.pause.is_held());
    assert!(workers.moves());
    workers.end();
}

#[test]
fn a_vcpu_that_does_not_come_is_told_of_and_runs_on() {
    let pause = Arc::new(Pause::new(2));
    pause.enter();
    let error = pause.hold(Duration::from_millis(20), || {}).unwrap_err();
    assert_eq!((error.running, error.vcpus), (1, 2));
    assert!(error.to_string().contains("1 of 2 vCPUs"), "{error}");
    assert!(!pause.is_held());
    pause.leave();
    assert!(pause.hold(Duration::ZERO, || {}).is_ok());
}

#[test]
fn who_begins_during_a_hold_does_not_go_in() {
    let pause = Arc::new(Pause::new(1));
    let hold = pause.hold(SOON, || {}).unwrap();
    let late = {
        let pause = Arc::clone(&pause);
        thread::spawn(move || {
            pause.enter();
            let stayed = pause.pass(|| false, || ());
            pause.leave();
            stayed
        })
    };
    thread::sleep(Duration::from_millis(5));
    assert!(!late.is_finished());
    drop(hold);
    assert!(late.join().unwrap());
}

#[test]
fn the_end_of_the_machine_lets_everybody_go() {
    let workers = Workers::start(2);
    let hold = workers.pause.hold(SOON, || {}).unwrap();
    workers.end();
    drop(hold);
}

#[test]
fn who_stays_does_what_is_wanted_and_stays_on() {
    let pause = Arc::new(Pause::new(1));
    let (wanted, went_on) = (AtomicBool::new(false), AtomicBool::new(false));
    let served = AtomicU64::new(0);
    pause.enter();
    thread::scope(|scope| {
        let worker = Arc::clone(&pause);
        let (wanted, went_on, served) = (&wanted, &went_on, &served);
        scope.spawn(move || {
            let is_wanted = || wanted.load(Ordering::SeqCst);
            let serve = || {
                wanted.store(false, Ordering::SeqCst);
                served.fetch_add(1, Ordering::SeqCst);
            };
            while !worker.is_held() {
                thread::yield_now();
            }
            assert!(worker.pass(is_wanted, serve));
            went_on.store(true, Ordering::SeqCst);
            worker.leave();
        });
        let hold = pause.hold(SOON, || {}).unwrap();
        for round in 1..=20 {
            wanted.store(true, Ordering::SeqCst);
            pause.nudge();
            let begin = Instant::now();
            while served.load(Ordering::SeqCst) < round {
                assert!(begin.elapsed() < SOON, "never served");
                thread::yield_now();
            }
        }
        // Held all the while: a second hold has nothing to wait for.
        drop(pause.hold(Duration::ZERO, || {}).unwrap());
        assert!(!went_on.load(Ordering::SeqCst));
        drop(hold);
    });
    assert!(went_on.load(Ordering::SeqCst));
}
