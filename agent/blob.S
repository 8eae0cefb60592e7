// The agent's bytes inside stasis.
        .section .rodata
        .globl  stasis_agent_blob_begin
        .globl  stasis_agent_blob_end
stasis_agent_blob_begin:
        .incbin AGENT_BLOB_FILE
stasis_agent_blob_end:
        .section .note.GNU-stack, "", @progbits
