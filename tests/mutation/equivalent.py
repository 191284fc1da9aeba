"""Mutants that behave as the module does, and why: no test can find them."""

# By module and the mutant's name.
EQUIVALENT: dict[str, dict[str, str]] = {
    "engine/scheduler/batcher": {
        "Batcher.__init__: 0 -> 1": "only the order of the numbers counts",
        "Batcher.add: 1 -> 2": "likewise",
        "_Lanes.free_at: break -> continue": "once enough is free, it stays so, and each later batch is passed over",
    },
    "engine/scheduler/policies": {
        "_deferred_select: fitting < rows -> fitting <= rows": "where all fit, nobody is in the way",
        "_throughput: 0.0 -> 1.0": "a request that stays fits alone, so no batch has 0 rows",
    },
    "engine/scheduler/latency_model": {
        "RunTimes.__init__: 1 -> 2": "after 20 batches a new one has the least weight, as after 40",
        "RunTimes._replace: knot < size -> knot <= size": "the time of the size itself is set next",
        "RunTimes._around: knot <= size -> knot < size": "a measured size has the whole weight, its neighbour none",
        "RunTimes._around: knot >= size -> knot > size": "likewise",
    },
    "engine/scheduler/request_queue": {
        "Queue.put: due < self._places[-1][0] -> due <= self._places[-1][0]": "a later number sorts behind it as well",
        "Queue.remove: 2 -> 3": "the request is equal to itself",
        "Queue.pop: break -> continue": "what did not fit stays counted, so nothing behind it fits",
    },
    "engine/scheduler/trials": {
        "candidates: chosen - 1 -> chosen + 1": "the next larger power of two is left out: it is not smaller",
        "candidates: 0 -> 1": "every size has at least one row, and one row is not smaller than one",
    },
    "engine/dispatcher": {
        "Dispatcher.__init__: 0 -> 1": "only the order of the plans' numbers counts",
        "Dispatcher._plan: 1 -> 2": "likewise",
        "Dispatcher._report: plan.number < self._newest -> plan.number <= self._newest": "each is reported once",
    },
    "frontend/admission": {
        "Outlook.learn: deadline < math.inf -> deadline <= math.inf": "a refusal due at no time never applies",
    },
    "frontend/suspects": {
        "Quarantine._digest: 16 -> 17": "a longer digest differs where the shorter one does",
        "Quarantine._sample: 8 -> 9": "likewise",
    },
    "frontend/engine_client": {
        "EngineClient._end: 0 -> 1": "nothing reads the mark of a request that has ended",
    },
    "ipc/slots": {
        "SharedMemory.array: 0 -> 1": "a scalar has no side that could be negative",
        "Arena.free: 0 -> 1": "no block has one byte",
    },
}
