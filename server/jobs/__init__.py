"""Training jobs: queued in SQLite, each run in a process of its own, followed by readers.

job          what a job is                          no I/O
queue        whose turn it is, which state follows  no I/O
verdict      what the end of a trainer means        no I/O
progress     what the recorded events amount to     no I/O
store        the database
launcher     starts the trainer's process
ray_launcher starts it on a Ray cluster
tail         reads the record as it grows, for any number of subscribers
ledger       commits each change of state and tells everybody who watches
telemetry    recorded events to Prometheus
trainer_log  what the trainer printed
log_reader   what the trainer printed, as it grows
checkpoints  which there are, which are kept, which may go
publication  the best checkpoint becomes a model
turn         one job: its trainer started, followed, stopped, started again
supervisor   runs the queue: gives jobs their turn, pauses and cancels them
submission   checks what a caller asks for and fills in the rest
admission    puts it on the disk, once for each request_id
service      all of the above, as the server sees it
"""
