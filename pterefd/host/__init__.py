"""The machine: its mms, who they belong to, what was published of them.

host      runs events on the mms, one lock, and publishes
warm      compiles or loads the kernels before somebody waits for one
process   what is known of a process beside its mm
counters  the numbers of one mm, by name
memory    zones, watermarks, knobs, groups; what oom_badness says
pressure  the order of reclaim at the marks, and the OOM killer
view      all mms as arrays, for plugins and faces
ranking   mms by reclaimable bytes

Lock order: there is one lock, Host.lock. What is called back from under it must not take it again.
"""
