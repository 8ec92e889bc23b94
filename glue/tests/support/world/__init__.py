"""A small world around the real ledger: nsqd, workers, Kafka and the clock are simulated, all chance is from one seed.

There is one lane. Each part is a generator that yields how many seconds pass until its next step, so that the steps of
all of them mix in every order, and a fault comes between any two. The world knows the truth, and raises BrokenError
in the moment in which the bridge around the ledger breaks a promise:

P1 everything comes to done once the faults are over, and the commit to the end
P2 nothing is published that an nsqd holds from which workers take, or that is on its way there
P3 the commit never passes a position that is not done
P4 nsqd never holds more than the cap
P5 nothing is concluded lost that nsqd holds
O  nothing is published again while the worker that began it last is alive and runs it
E  nothing that was emptied on purpose comes back
"""

from support.world.bridge import Bridge
from support.world.faults import FAULTS
from support.world.world import BrokenError, World

__all__ = ["FAULTS", "Bridge", "BrokenError", "World"]
