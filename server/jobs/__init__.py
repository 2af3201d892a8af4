"""Training jobs: queued in SQLite, run one at a time in their own process, followed by readers.

job          what a job is                          no I/O
queue        whose turn it is, which state follows  no I/O
verdict      what the end of a trainer means        no I/O
progress     what the recorded events amount to     no I/O
store        the database
launcher     starts the trainer's process
tail         reads the record as it grows, for any number of subscribers
ledger       commits each change of state and tells everybody who watches
telemetry    recorded events to Prometheus
trainer_log  what the trainer printed last
publication  the best checkpoint becomes a model
supervisor   runs the queue
submission   checks what a caller asks for and fills in the rest
admission    puts it on the disk, once for each request_id
service      all of the above, as the server sees it
"""
