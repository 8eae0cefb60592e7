// Where the agent begins and ends. The blob starts with stasis_agent_entry: rdi = area, rsi = slot, rsp = the slot's stack.
        .text

        .section .text.entry, "ax", @progbits
        .globl  stasis_agent_entry
        .hidden stasis_agent_entry
        .type   stasis_agent_entry, @function
stasis_agent_entry:
        xor     %ebp, %ebp
        cld
        and     $-16, %rsp
        call    stasis_agent_run
        ud2                                     // slots of the blob never return
        .size   stasis_agent_entry, . - stasis_agent_entry

        .text
// int64_t spawn_slot(const void *clone_args, uint64_t size, uint8_t *area, uint64_t slot)
        .globl  spawn_slot
        .hidden spawn_slot
        .type   spawn_slot, @function
spawn_slot:
        mov     %rdx, %r9                       // kept by the system call, in the parent and in the child
        mov     %rcx, %r8
        mov     $435, %eax                      // clone3
        syscall
        test    %rax, %rax
        jz      1f
        ret
1:      mov     %r9, %rdi
        mov     %r8, %rsi
        xor     %ebp, %ebp
        // The code runs from the area it was given, which is the blob's copy there, not from ours: the child's first
        // act may be to unmap everything else.
        jmp     *%rdi
        .size   spawn_slot, . - spawn_slot

// void jump_to(const uint8_t *code)
        .globl  jump_to
        .hidden jump_to
        .type   jump_to, @function
jump_to:
        jmp     *%rdi
        .size   jump_to, . - jump_to

        .section .note.GNU-stack, "", @progbits
